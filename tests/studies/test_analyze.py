"""`pdejax analyze`: every figure has its layers and its null; two runs are compared; what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from flax import nnx

import pdejax as pj
from pdejax import Figure, cli
from pdejax.analysis import layer_correlation
from pdejax.data import load
from pdejax.studies import analyze
from pdejax.studies.numerics import _analyze_depth as depth
from pdejax.studies.papers import STUDIES
from pdejax.training import TrainConfig, load_trained, train

DATA = {"min_length": 3, "max_length": 12, "sizes": (300, 64, 64)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze")
    for seed in (0, 1):
        config = TrainConfig(
            data=DATA,
            dim=16,
            heads=2,
            ffn=32,
            layers=2,
            steps=4,
            eval_every=4,
            seed=seed,
            out=str(folder / f"run{seed}"),
        )
        train(config, progress=False)
    return folder


@pytest.mark.slow
def test_two_runs_in_figures_files_and_plots(runs, tmp_path, capsys):
    out = tmp_path / "out"
    status = cli.main(
        [
            "analyze",
            str(runs / "run0"),
            "--against",
            str(runs / "run1"),
            "--examples",
            "24",
            "--out",
            str(out),
            "--json",
        ]
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    content = json.loads(printed.out)
    assert status == 0 and content == json.loads((out / "analysis.json").read_text())
    lines = {line["name"]: line for line in content["results"]["lines"]}
    assert len(lines) == len(content["results"]["lines"]) >= 23
    for line in lines.values():
        assert np.all(np.isfinite(line["values"])) and len(line["values"]) == 3 - line["first"]
        assert line["null"] is None or len(line["null"]) == len(line["values"]), line["name"]
    assert {"distance from the continuum", "accuracy under refinement", "largest stable step"} <= set(
        content["verdicts"]
    )
    for picture in content["figures"]:
        assert len(picture["caption"].split()) > 3 and (out / picture["file"]).exists()
    assert lines["entropy of attention"]["null"][0] >= lines["entropy of attention"]["values"][0]
    config = content["config"]
    assert config["model"] == "run0" and config["against"] == "run1" and str(runs) not in json.dumps(content)
    # A figure of the table is that of the analysis itself.
    model = load_trained(runs / "run0").model
    batch = load("listops", "test", **DATA).take(np.arange(24))
    states = np.stack([np.asarray(model.hidden_states(t, m)) for t, m in zip(batch.inputs, batch.mask, strict=True)], 1)
    expected = layer_correlation(states, mask=batch.mask).pearson.value
    assert lines["correlation with the input"]["values"] == pytest.approx(np.asarray(expected).tolist(), rel=1e-5)
    with xr.open_dataset(out / "analysis.nc", engine="scipy") as data:
        assert data.sizes["figure"] == len(lines) and data.sizes["layer"] == 3
    assert len(list(out.glob("*.png"))) == len(content["figures"]) >= 11
    # The one file that the run left is the same model.
    again = analyze(runs / "run0" / "model.npz", examples=24)
    assert again.results["depth"] == content["results"]["depth"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"examples": 1}, "examples=1"),
        ({"seed": -1}, "seed=-1"),
        ({"noise": 0.0}, "noise=0.0"),
        ({"dataset": "imagenet"}, "dataset"),
        ({"data": 3}, "data"),
        ({}, r"config\.json"),
    ],
)
def test_what_is_refused(options, words, tmp_path):
    with pytest.raises((ValueError, TypeError), match=words):
        analyze(tmp_path, **options)


def test_a_file_that_does_not_say_its_data(tmp_path):
    options = {"vocab": 16, "dim": 8, "heads": 2, "layers": 2, "ffn": 12}
    pj.save_model(tmp_path / "net.npz", pj.Transformer(pj.Architecture(**options), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"net\.npz' does not say what it was trained on; give dataset="):
        analyze(tmp_path / "net.npz")
    with pytest.raises(FileNotFoundError, match=r"analyze: model='nowhere' does not exist"):
        analyze("nowhere")


# What users ask first, on a network whose answers are known in closed form


GAMMA, LAYERS, TOKENS = 0.5, 4, 6


@pytest.fixture(scope="module")
def damped():
    """u' = −γu, one Euler step of size 1 per layer; the head tells the sign of the first feature of the mean token."""

    def head(u, mask):
        weights = mask.astype(u.dtype)[:, None]
        mean = jnp.sum(u * weights, 0) / jnp.sum(weights)
        return jnp.stack([mean[0] - 0.2, 0.2 - mean[0]])

    # Attention of strength 0 adds nothing, and has weights for the null to shuffle.
    attention = pj.Attention(2, 1, strength=0.0, key=jax.random.key(0))
    layer = pj.MasterEquation(attention, stabilization=pj.terms.LinearDamping(GAMMA))
    field = pj.DepthVarying.from_layers([layer] * LAYERS, float(LAYERS))
    net = pj.Network(lambda x: x, pj.Discretization(field, "euler", t1=float(LAYERS), steps=LAYERS), head)
    u = jnp.asarray(np.random.default_rng(0).normal(size=(8, TOKENS, 2)))
    mask = jnp.ones((8, TOKENS), bool).at[:, 4:].set(False)
    return net, u, mask


def test_distance_from_the_continuum_is_that_of_the_closed_form(damped):
    """Euler with k steps per layer: (1 − γ/k)^{kt}; the reference has 64."""
    net, u, mask = damped
    labels = jnp.zeros(8, jnp.int32)
    found = depth.refined(net, u, mask, labels, jax.random.key(0))

    def euler(k, layer):
        return (1 - GAMMA / k) ** (k * layer)

    limit = euler(64, LAYERS)
    np.testing.assert_allclose(
        found.distance.value, [abs(euler(k, LAYERS) / limit - 1) for k in depth.FACTORS], rtol=1e-9
    )
    by_layer = [abs(euler(1, layer) - euler(64, layer)) / limit for layer in range(LAYERS + 1)]
    np.testing.assert_allclose(found.by_layer.value, by_layer, rtol=1e-9, atol=1e-12)
    assert found.own == pytest.approx(abs(euler(32, LAYERS) / limit - 1), rel=1e-9)
    means = np.asarray(u)[:, :4, 0].mean(1)
    for i, k in enumerate(depth.FACTORS):
        assert float(found.accuracy.value[i]) == pytest.approx(np.mean(means * euler(k, LAYERS) > 0.2))
        own = means * euler(1, LAYERS) > 0.2
        assert float(found.agreement.value[i]) == pytest.approx(np.mean((means * euler(k, LAYERS) > 0.2) == own))
    # An answer near the border makes the sequences differ; the interval holds the mean.
    assert np.all(found.accuracy.low <= found.accuracy.value) and np.all(found.accuracy.value <= found.accuracy.high)


def test_steps_exponents_and_layers_of_the_closed_form(damped):
    net, u, mask = damped
    np.testing.assert_allclose(depth.largest_steps(net, u[0], mask[0]), 2 / GAMMA, rtol=1e-6)
    # One Euler step multiplies every tangent by 1 − γ.
    np.testing.assert_allclose(
        depth.exponents(net, u[:2], mask[:2], jax.random.key(0)).value, np.log(1 - GAMMA), rtol=1e-6
    )
    labels = jnp.zeros(8, jnp.int32)
    means = np.asarray(u)[:, :4, 0].mean(1)
    whole, without = (np.mean(means * (1 - GAMMA) ** n > 0.2) for n in (LAYERS, LAYERS - 1))
    costs = depth.skipped(net, u, mask, labels, jax.random.key(0))
    np.testing.assert_allclose(costs.value, [whole - without] * LAYERS, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"diffusion": "feature"}, {"stabilization": "layernorm"}])
def test_padding_changes_nothing_of_what_is_measured(options):
    """A sequence padded from 4 to 6 tokens is the short one, whatever stands at padding and however unstable it is there."""
    shape = pj.Architecture(vocab=16, dim=8, heads=2, layers=2, ffn=12, head="classification", classes=3)
    model = pj.Simulator(pj.SimulatorConfig(shape, **options), key=jax.random.key(0))
    key, labels = jax.random.key(1), jnp.asarray([0, 1, 2, 0])
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 16, (4, 6)))
    mask = jnp.ones((4, 6), bool).at[:, 4:].set(False)

    def found(ids, real):
        got = depth.measured(pj.as_network(model, length=ids.shape[1]), ids, real, labels, key, lambda text: None)
        return {name: got[name] for name in ("dt_max", "skipped")} | {
            "distance": got["refined"].distance,
            "exponents": np.asarray(got["exponents"].value),
        }

    short, padded = found(tokens[:, :4], mask[:, :4]), found(tokens, mask)
    other = found(jnp.where(mask, tokens, 15 - tokens), mask)
    for name in ("dt_max", "skipped", "distance"):
        np.testing.assert_allclose(padded[name], short[name], rtol=2e-4, atol=1e-6, err_msg=name)
    for name, value in padded.items():
        np.testing.assert_allclose(other[name], value, rtol=2e-4, atol=1e-6, err_msg=name)


def test_answers_follow_the_numbers():
    cost = Figure(np.array([0.0, 0.3]), np.array([0.0, 0.2]), np.array([0.01, 0.4]))
    answers = depth.sentences({"notes": [], "skipped": cost, "dt_max": np.array([3.0, 0.7]), "step": 1.0})
    assert answers["largest stable step"] == "0.7 of forward Euler, at layer 2; the network's own is 1"
    assert answers["layers that can be left out, one at a time"].startswith("1 (")
    for value, words in ((0.2, "part"), (-0.2, "stay together")):
        largest = Figure(np.array([value]), np.array([value - 0.1]), np.array([value + 0.1]))
        assert words in depth.sentences({"exponents": largest})["largest Lyapunov exponent"]


def post_ln(spread: float):
    """A post-LN network whose norms have scales from 1 − spread to 1 + spread; one scale for all features is a projection."""
    options = {"vocab": 16, "dim": 8, "heads": 2, "layers": 2, "ffn": 12, "norm": "post"}
    model = pj.Transformer(pj.Architecture(**options), rngs=nnx.Rngs(0))
    state = nnx.state(model)
    for path, leaf in nnx.to_flat_state(state):
        if path[-1] == "scale":
            scales = leaf.get_value()
            leaf.set_value(jnp.broadcast_to(jnp.linspace(1 - spread, 1 + spread, scales.shape[-1]), scales.shape))
    nnx.update(model, state)
    return pj.as_network(model)


@pytest.mark.slow
def test_post_ln_is_refined_where_its_norms_project():
    """Then its steps converge, at order 1, to the flow on the sphere; with a learned scale they have no limit to compare with."""
    tokens, mask = jnp.asarray([[1, 5, 9, 2], [3, 3, 8, 1]]), jnp.ones((2, 4), bool).at[1, 3].set(False)

    def found(spread):
        return depth.measured(post_ln(spread), tokens, mask, None, jax.random.key(0), lambda text: None)

    projected, learned = found(0.0), found(0.4)
    distances = np.asarray(projected["refined"].distance.value)
    # Errors of order 1 of 8 and 16 steps, less the reference's own of 64 steps.
    assert depth.FACTORS[-2:] == (8, 16) and np.all(np.diff(distances) < 0)
    assert distances[-1] / distances[-2] == pytest.approx((1 / 16 - 1 / 64) / (1 / 8 - 1 / 64), rel=0.05)
    assert "refined" not in learned and "no projection" in learned["notes"][0]
    for one in (projected, learned):
        assert "dt_max" not in one and "largest stable step" in one["notes"][-1] and len(one["exponents"].value) == 4


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert cli.main(["analyze", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert cli.main(["reproduce", "alinement", "--out", str(tmp_path)]) == 2
    assert "alinement" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "pdejax reproduce" in capsys.readouterr().err


def test_the_studies_are_listed(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(STUDIES) == 18 and any(line.startswith("alignment") for line in listed)
