"""Sentences and tables of the papers' experiments follow from the numbers: stored evidence gives the stored ones, other evidence
others. Nothing is trained here."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from pdejax.studies.papers import STUDIES
from pdejax.studies.papers._experiment import CORRELATION, RATIO, Settings, over, sign
from pdejax.studies.papers._pairs import PAIRINGS, made_of, parameters_of

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "reproduce"
COORDINATES = {"step", "epsilon", "frequency", "steps"}
RENAMED = {"iid_exponent": "iid", "distance_to_network": "away"}


def stored(name):
    """What `result.json` holds, and each seed's evidence from `result.nc`."""
    saved = json.loads((RESULTS / name / "result.json").read_text())
    with xr.open_dataset(RESULTS / name / saved["data"], engine="scipy") as data:
        evidence = [
            {
                RENAMED.get(str(key), str(key).replace(", ", "/")): _of_seed(data[key], k)
                for key in (*data.data_vars, *sorted(COORDINATES & set(data.coords)))
            }
            for k in range(len(saved["seeds"]))
        ]
    return saved, evidence


def _of_seed(array, k):
    return array.isel(seed=k).values if "seed" in array.dims else array.values


@pytest.mark.parametrize("name", STUDIES)
def test_stored_evidence_gives_the_stored_table_and_sentence(name):
    saved, evidence = stored(name)
    study = STUDIES[name]
    found = study.judge(Settings(**saved["config"]), evidence)
    assert (found.sentence, found.passed) == (saved["verdict"], saved["passed"])
    assert (study.title, study.question, study.source, study.pairing) == tuple(
        saved.get(key) for key in ("title", "question", "source", "pairing")
    )
    assert [picture.file for picture in found.pictures] == [picture["file"] for picture in saved["figures"]]
    assert [picture.caption for picture in found.pictures] == [picture["caption"] for picture in saved["figures"]]
    assert len(found.rows) == len(saved["table"])
    for row, line in zip(found.rows, saved["table"], strict=True):
        again = row.to_json()
        for key in ("quantity", "unit", "paper", "null_name", "note"):
            assert again[key] == line[key], row.quantity
        for key in ("ours", "null"):
            assert (again[key] is None) == (line[key] is None), row.quantity
            for part in ("mean", "low", "high", "values") if again[key] is not None else ():
                ours, theirs = (np.asarray(x[key][part], float) for x in (again, line))
                np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7, err_msg=row.quantity)


@pytest.mark.parametrize("name", STUDIES)
def test_bare_at_step_one_is_labelled_as_our_reading(name):
    """v2 states no step: nothing that is kept calls the field at h = 1 theirs."""
    texts = json.dumps(json.loads((RESULTS / name / "result.json").read_text()))
    assert "(v2's simulator)" not in texts
    assert "bare (" not in texts or "our reading" in texts or name == "distillation"


RANGES = {
    (-1.0, 1.0): (
        "cosine",
        "correlation",
        "CKA",
        "similarity",
        "Pearson",
        "Spearman",
        "adjacent layers",
        "last layer,",
    ),
    (0.0, 1.0): ("accuracy", "effective-dimension", "sparsity", "predictions", "cumulative"),
    (0.0, np.inf): (" / ", "norm", "distance", "KL", "MSE"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_no_interval_leaves_the_range_of_its_figure(name):
    for line in json.loads((RESULTS / name / "result.json").read_text())["table"]:
        ranges = [ends for ends, words in RANGES.items() if any(word in line["quantity"] for word in words)]
        for low, high in ranges[:1]:
            for one in filter(None, (line["ours"], line["null"])):
                ends = [end for end in (one["low"], one["high"]) if end is not None]
                assert all(low <= end <= high for end in ends), (line["quantity"], ends)


def test_parameters_told_from_settings_are_those_that_were_counted():
    saved, [first, *_] = stored("alignment")
    train = saved["config"]["train"]
    assert [parameters_of(train, pairing) for pairing in PAIRINGS] == first["parameters"].tolist()
    assert made_of(train, "bare") == "leaky field, no LayerNorm, Lie–Trotter, h = 1, 74,688 parameters in the field"


@pytest.mark.parametrize(
    "name", ["spectral", "architectures", "information", "gradients", "attention", "attention-images"]
)
def test_tables_say_what_each_system_is_made_of_and_which_null_stands_beside(name):
    table = json.loads((RESULTS / name / "result.json").read_text())["table"]
    for line in table:
        both = line["quantity"].startswith("PDE / ") or line["note"] == "null models"
        assert both or "parameters in the field" in line["note"], line["quantity"]
    if name in ("spectral", "architectures", "information", "attention", "attention-images"):
        assert all(line["null"] or "null" in line["note"] for line in table)
    assert all(line["null_name"] not in (None, "null", "permuted or Gaussian") for line in table if line["null"])


def test_the_null_of_a_gap_is_another_seed():
    """Of cumulative energies by hand: two Transformers 0.1 apart, the simulators on the first."""
    saved, evidence = stored("spectral")
    for k, one in enumerate(evidence):
        one["cumulative"] = np.full_like(one["cumulative"], 0.5)
        one["cumulative"][0] += 0.1 * (k == 0)
    found = STUDIES["spectral"].judge(Settings(**saved["config"]), evidence)
    [gap] = [line for line in found.rows if line.quantity == "largest gap of cumulative energies, distilled"]
    np.testing.assert_allclose(gap.seeds, [0.1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(gap.null_seeds, [0.1, 0.1, 0, 0, 0], atol=1e-6)


def flat(value):
    return lambda x: np.full_like(x, value)


# Other evidence, and what the sentence then says.
OTHERWISE = {
    "information-flow": ({"pearson": flat(0.9)}, "not explained by the lack of a fit"),
    "attention-images": ({"uniform_cosine": flat(0.99)}, "what flat attention gives anyway"),
    "attention": ({"cosine": flat(0.9)}, "(not as close as printed)"),
    "information-bottleneck": (
        {"target": lambda x: -np.arange(x.size, dtype=float).reshape(x.shape)},
        "information about the answer changes by -",
    ),
    "gradients": (
        {"parameters": lambda x: np.stack([x[0], 3 * x[0]])},
        "gradients are 3 [3, 3] times the Transformer's (interval over seeds; v1: about ten times)",
    ),
    "perturbation": ({"adversarial_loss": flat(0.0)}, "the difference is +0 [+0, +0] at 1e-02"),
    "alignment": ({"cosine": flat(0.99)}, "A cosine of 0.97 is reached by shared"),
    "alignment-step": ({"own_cosine": flat(0.99)}, "a cosine as high does not need a fit."),
    "distillation": ({"cosine": flat(0.99)}, "a high cosine after a fit does not tell which equation"),
    "paper-size": ({"correlation": flat(0.5)}, "Transformer 0.500 away"),
    "residual": ({"before": flat(0.5), "after": flat(0.5)}, "the loss is not there at initialization"),
    # v2's own pair a hundred times apart: at every step the field without residual connection and normalization.
    "layernorm": (
        {"gradient": lambda x: x * np.where(np.isin(np.arange(len(x)), (4, 11, 17)), 100.0, 1.0)[:, None]},
        "v2's order of magnitude holds.",
    ),
    "spectral": ({"null_log_correlation": flat(1.0)}, ", no better."),
    "information": ({"input": flat(1.0)}, "changes by +0 [+0, +0] nats"),
    "readings": ({"correlation": flat(0.5)}, "Transformer (1.00 … 0.98) is met by none of"),
    "continuum": ({"bound": flat(1e-30)}, "VIOLATED"),
    "discretization": ({"network_to_limit": flat(0.01)}, "is close to the flow of its own weights"),
    "architectures": (
        {f"{system}/distilled": flat(0.5) for system in ("Vision Transformer", "causal decoder")},
        "cosine 0.97, v2's, for 0 of 2",
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_other_evidence_gives_another_sentence(name):
    saved, evidence = stored(name)
    changes, words = OTHERWISE[name]
    assert words not in saved["verdict"]
    for found in evidence:
        found.update({key: change(np.asarray(found[key])) for key, change in changes.items()})
    found = STUDIES[name].judge(Settings(**saved["config"]), evidence)
    # What contradicts the papers is a finding. An error above a bound of ours is a fault.
    assert words in found.sentence and found.passed == ("VIOLATED" not in found.sentence)


def test_a_folder_of_results_is_no_package(tmp_path):
    """Python takes a folder where it is started for a package: none may have the name of one that something asks for."""
    for name in STUDIES:
        (tmp_path / name).mkdir()
    code = "import jax, matplotlib, pandas, scipy, xarray; xarray.DataArray([1.0, float('nan')], dims='x').mean()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    assert not taken & {
        name for name in (*STUDIES, "models", "programs", "parts", "claims", "audit") if name.isidentifier()
    }


def discretization_with(order, bias=0.0, scatter=0.01):
    """Five seeds whose schemes have these orders, give or take a hundredth; `bias` a in errors h^p (1 + a h), of all seeds."""
    rng = np.random.default_rng(0)
    saved, [first, *_] = stored("discretization")
    settings = Settings(**saved["config"])
    h = 1 / np.asarray(settings.options["steps_per_layer"], float)
    evidence = [
        first
        | {
            "error": np.stack(
                [
                    h ** (order[s] + scatter * rng.standard_normal()) * (1 + bias * h)
                    for s in settings.options["schemes"]
                ]
            )
        }
        for _ in range(5)
    ]
    found = STUDIES["discretization"].judge(settings, evidence)
    assert found.passed == found.sentence.startswith("Refining the step converges")
    return found


def test_an_order_is_that_of_theory_only_where_the_interval_holds_it():
    theory = {"euler": 1.0, "lietrotter": 1.0, "heun": 2.0, "strang": 2.0, "rk4": 4.0}
    assert "holds the order of theory for 5 of 5 schemes) to a flow" in discretization_with(theory).sentence
    for name, other in (("heun", 1.9), ("rk4", 3.0)):
        far = discretization_with(theory | {name: other}).sentence
        assert far.startswith("Refining the step is not shown to converge")
        assert f"for 4 of 5 schemes, missed by {name} {other - theory[name]:.2g} [" in far
    # An interval that holds every order tells none.
    wide = discretization_with(theory, scatter=0.6).sentence
    assert wide.startswith("Refining the step is not shown to converge") and "too wide to tell for" in wide


def test_a_bias_that_all_seeds_share_is_in_the_interval_of_an_order():
    """Student's t over seeds that differ by little leaves the order of theory out; the rows' intervals do not."""
    theory = {"euler": 1.0, "lietrotter": 1.0, "heun": 2.0, "strang": 2.0, "rk4": 4.0}
    found = discretization_with(theory, bias=0.5, scatter=1e-4)
    assert found.passed
    for name, line in zip(theory, found.rows, strict=False):
        alone = over(line.seeds)
        assert line.quantity == f"order of {name}" and not alone.low <= theory[name] <= alone.high
        assert line.ours is not None and line.ours.low <= theory[name] <= line.ours.high


def test_a_limit_is_claimed_only_where_all_orders_are_near():
    saved, evidence = stored("continuum")
    for found in evidence:
        lost = 0.5 * (found["expected"] == 4)
        found["order"], found["error"] = (
            found["order"] - lost,
            found["error"] * np.asarray(found["steps"]) ** lost[:, None],
        )
    judged = STUDIES["continuum"].judge(Settings(**saved["config"]), evidence)
    assert not judged.passed and judged.sentence.startswith("Whether there is a continuum limit is not shown: ")
    assert "for 4 of 5 schemes, missed by rk4 -0.5 [" in judged.sentence
    # Orders that the errors kept beside them do not give are known to that difference only.
    _, evidence = stored("continuum")
    for found in evidence:
        found["order"] = found["order"] - 0.5 * (found["expected"] == 4)
    judged = STUDIES["continuum"].judge(Settings(**saved["config"]), evidence)
    assert not judged.passed and "too wide to tell for rk4" in judged.sentence


def test_what_a_field_is_made_of_decides_only_where_some_is_surely_farther():
    saved, evidence = stored("distillation")
    settings = Settings(**saved["config"])
    two = STUDIES["distillation"].judge(settings, evidence[:2]).sentence
    assert two.endswith("(range over seeds): whether the form of the field decides is not shown.")
    rng = np.random.default_rng(0)
    five = [evidence[0] | {"cosine": evidence[0]["cosine"] + 1e-3 * rng.standard_normal()} for _ in range(5)]
    for k, found in enumerate(five):  # a scatter that differs between kinds, too
        found["cosine"] = found["cosine"] + 1e-3 * k * (np.arange(8) == 3)[:, None]
    said = STUDIES["distillation"].judge(settings, five).sentence
    assert "(interval over seeds): what the field is made of decides whether it can follow." in said


@pytest.mark.parametrize(
    "name",
    [
        "information-flow",
        "attention",
        "attention-images",
        "alignment",
        "alignment-step",
        "distillation",
        "information-bottleneck",
        "paper-size",
    ],
)
def test_a_sentence_says_what_its_brackets_are(name):
    saved, evidence = stored(name)
    for seeds, words in ((5, "interval over seeds"), (2, "range over seeds"), (1, "value of the one seed")):
        some = [evidence[k % len(evidence)] for k in range(seeds)]
        assert f"{words}" in STUDIES[name].judge(Settings(**saved["config"]), some).sentence


def bottleneck_with(changes, risen=0.5):
    """Five seeds of two systems, two noises, four layers: I(T; Y) changes by these, give or take a hundredth, above a null of 0,
    then by half as much again while the validation loss rises."""
    rng = np.random.default_rng(0)
    evidence = []
    for _ in range(5):
        end = np.reshape(changes, (2, 1, 4)) + 0.01 * rng.standard_normal((2, 2, 4))
        target = 1 + np.stack([0 * end, end / 2, end], axis=2)  # (systems, noises, steps, layers)
        losses = np.asarray([[1.0, 1.0 + risen]] * 2) + 0.01 * rng.standard_normal((2, 2))
        evidence.append({"target": target, "input": target, "null": 0 * target, "step": np.asarray([0, 9, 18])})
        evidence[-1] |= {"validation": losses, "training": losses}
    study = STUDIES["information-bottleneck"]
    return study.judge(study.presets["quick"], evidence).sentence


@pytest.mark.parametrize(
    ("changes", "counts", "said"),
    [
        ([-0.1] * 4 + [0.5] * 4, "surely falls in 8, rises in 8 of 16", "Whether it falls is not decided."),
        ([-0.1] * 8, "surely falls in 16, rises in 0 of 16", "The fall is seen."),
        ([0.0] * 8, "surely falls in 0, rises in 0 of 16", "Whether it falls is not decided."),
        ([0.5] * 5 + [0.0] * 3, "surely falls in 0, rises in 10 of 16", "a fall over training is not seen"),
    ],
)
def test_a_fall_is_seen_only_where_every_layer_surely_falls(changes, counts, said):
    found = bottleneck_with(changes)
    assert counts in found and said in found and ("The fall is seen" in found) == (said == "The fall is seen.")


def test_a_fall_in_overfitting_is_part_of_the_answer():
    """Information that is gained, then lost in part: a fall over training is not seen, that of the end is counted."""
    rng = np.random.default_rng(0)
    evidence = []
    for _ in range(5):
        end = np.full((2, 2, 4), 1.0) + 0.01 * rng.standard_normal((2, 2, 4))
        target = 1 + np.stack([0 * end, end, end - [[[0.5]], [[0.0]]]], axis=2)  # only the Transformer loses some
        losses = np.asarray([[1.0, 1.5]] * 2) + 0.01 * rng.standard_normal((2, 2))
        evidence.append({"target": target, "input": target, "null": 0 * target, "step": np.asarray([0, 9, 18])})
        evidence[-1] |= {"validation": losses, "training": losses}
    study = STUDIES["information-bottleneck"]
    found = study.judge(study.presets["quick"], evidence).sentence
    assert found.endswith("is not seen; after the least validation loss it falls in 8 of 16 and rises in 0.")
    assert "surely lower in the PDE model in 0, higher in 8 of 8 layers and noises" in found
    assert bottleneck_with([0.5] * 8).endswith("a fall over training is not seen.")


def flow_with(last):
    """What is said where the last layer's correlations of heat equation, fitted and independent simulator are these."""
    saved, evidence = stored("information-flow")
    rng = np.random.default_rng(0)
    for one in evidence:
        one["pearson"] = np.array(one["pearson"])
        one["pearson"][1:, -1] = np.asarray(last) + 0.01 * rng.standard_normal(3)
    return STUDIES["information-flow"].judge(Settings(**saved["config"]), evidence).sentence


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ((0.05, 0.9, 0.0), "met by none: without a common fit the correlation falls to about 0, with one it stays."),
        ((-0.14, 0.9, 0.5), "met by heat equation: without a common fit the correlation falls, with one it stays."),
        ((0.05, 0.9, 0.9), "met by none: whether the lack of a fit explains the fall is not shown."),
        ((0.8, 0.9, 0.9), "met by none: the fall is not explained by the lack of a fit."),
    ],
)
def test_a_printed_end_is_met_only_where_an_interval_holds_it(last, said):
    assert flow_with(last).endswith(f"v1's −0.14 is {said}")


def test_overfitting_begins_where_the_validation_loss_is_least():
    assert "After the least validation loss (steps 9 and 9; it rises by +0.5 [" in bottleneck_with([0.5] * 8)
    assert "then) it surely falls in 0, rises in 16." in bottleneck_with([0.5] * 8)
    # Where it falls to the end, nothing comes after.
    assert "(steps 18 and 18; it rises by +0" in bottleneck_with([0.5] * 8, risen=-0.5)
    assert "then) it surely falls in 0, rises in 0." in bottleneck_with([0.5] * 8, risen=-0.5)


def test_who_suffers_is_said_with_the_sign():
    """The Transformer's loss rises more up to ε = 1e-2, the PDE model's beyond; random directions do the same to both."""
    epsilon = np.asarray([1e-3, 3e-3, 1e-2, 1e-1])
    rng = np.random.default_rng(1)
    evidence = []
    for _ in range(5):
        rise = np.stack([20 * epsilon, 10 * epsilon + 200 * epsilon**2]) * (1 + 1e-4 * rng.standard_normal((2, 1)))
        random = np.stack([epsilon, epsilon]) * (1 + 0.1 * rng.standard_normal((2, 4)))
        evidence.append({
            **{"epsilon": epsilon, "adversarial_loss": rise, "random_loss": random, "adversarial_state": rise},
            **{"random_state": random, "limit": np.asarray([0.1, 0.2]), "base": np.asarray([1.0, 1.5])},
        })  # fmt: skip
    study = STUDIES["perturbation"]
    found = study.judge(study.presets["quick"], evidence).sentence
    assert "already differs from the Transformer's: by +0.5 [" in found
    for k, one in enumerate(evidence):  # a difference that the seeds do not share
        one["base"] = np.asarray([1.0, 1.5 + 2.0 * (k - 2)])
    unsure = study.judge(study.presets["quick"], evidence).sentence
    assert "does not surely differ from the Transformer's: by +0.5 [" in unsure
    assert (
        "the PDE model suffers more at ε = 1e-01 and the Transformer suffers more at ε = 1e-03 … 1e-02; the difference is -0.08 ["
        in found
    )
    assert "in random directions neither surely suffers more at any ε" in found


def test_a_ratio_has_the_interval_of_its_logarithm():
    """By hand at five values whose logarithms are 0, 1, 2, 3, 4 times ln 2: mean 2, standard deviation √2.5, t = 2.776."""
    found, half = over(2.0 ** np.arange(5), RATIO), 2.7764451 * np.sqrt(2.5 / 5)
    expected = 2.0 ** np.asarray([2, 2 - half, 2 + half])
    np.testing.assert_allclose([found.value, found.low, found.high], expected, rtol=1e-7)
    inverse = over(2.0 ** -np.arange(5), RATIO)
    np.testing.assert_allclose([inverse.low, inverse.high], [1 / found.high, 1 / found.low], rtol=1e-12)
    assert over([1.0, 100.0], RATIO).summary() == "10 [1, 100]" and np.isnan(over([2.0], RATIO).low)


def test_few_seeds_have_a_range_and_bounded_figures_an_interval_inside():
    few = over([0.2, 0.9, 0.5, 0.99], CORRELATION)
    assert (float(few.low), float(few.high), few.level) == (0.2, 0.99, 0.875)
    many = over([0.2, 0.9, 0.5, 0.99, 0.97], CORRELATION)
    assert many.level == 0.95 and float(many.high) < 1 < float(over([0.2, 0.9, 0.5, 0.99, 0.97]).high)
    assert np.isnan(over([0.3]).low)
    # Two seeds agree by chance every other time.
    assert [sign([1.0, 2.0]), sign([-1.0]), sign([-2.0, -1.0, -1.5, -1.2, -1.1]), sign([1.0] * 5)] == [0, 0, -1, 1]
    # Of five seeds the interval decides, not the values: the mean's reaches 0.
    assert sign([0.01, 0.01, 0.02, 5.0, 0.01]) == 0
