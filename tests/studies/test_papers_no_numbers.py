"""NaN is never evidence: a study of which some is not finite concludes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_papers_stored import COORDINATES, stored

from pdejax.studies.papers import STUDIES
from pdejax.studies.papers._attention import three_ways
from pdejax.studies.papers._components import cells
from pdejax.studies.papers._experiment import Settings


def judged(name, change):
    """What is said of the kept evidence, of which `change(seed, name, values)` is put in place."""
    saved, evidence = stored(name)
    study = STUDIES[name]
    changed = [
        {
            key: change(k, key, np.array(value)) if np.asarray(value).dtype.kind == "f" else value
            for key, value in e.items()
        }
        for k, e in enumerate(evidence)
    ]
    return study.judge(Settings(**saved["config"]), changed)


@pytest.mark.parametrize("name", STUDIES)
def test_of_evidence_without_numbers_nothing_is_said(name):
    found = judged(name, lambda seed, key, x: x if key in COORDINATES else np.full_like(x, np.nan))
    assert found.sentence.startswith("Not measured") and not found.passed


@pytest.mark.parametrize("name", sorted({*STUDIES} - {"readings", "paper-size", "architectures"}))
def test_one_value_that_is_none_is_enough(name):
    """Of the first seed, the last value of the array that fills the table."""
    first = {"continuum": "order", "discretization": "error", "gradients": "parameters", "information": "input"}
    first |= {"information-bottleneck": "target", "residual": "after", "layernorm": "gradient"}
    first |= {"information-flow": "pearson", "perturbation": "adversarial_loss", "spectral": "log_correlation"}

    def change(seed, key, x):
        if seed == 0 and key == first.get(name, "cosine"):
            x[(-1,) * x.ndim] = np.nan
        return x

    found = judged(name, change)
    assert found.sentence.startswith("Not measured") and not found.passed
    assert first.get(name, "cosine") in found.sentence


@pytest.mark.parametrize("name", ["residual", "layernorm"])
def test_trainings_that_failed_are_a_finding(name):
    """Their figures are no numbers, and the rest is judged all the same; all of one kind that failed decide nothing about it."""
    saved, _ = stored(name)
    settings = Settings(**saved["config"])
    failed = [c.normalization == "none" for c in cells(settings)]

    def evidence(which):
        _, found = stored(name)
        for one in found:
            one["diverged"] = np.asarray(which, np.int8)
            for key in ("after", "after_cosine", "accuracy", "gradient"):
                one[key] = np.where(np.reshape(which, (-1,) + (1,) * (one[key].ndim - 1)), np.nan, one[key])
        return found

    one_kind = STUDIES[name].judge(settings, evidence(failed))
    assert one_kind.passed and "nan" not in one_kind.sentence and not one_kind.sentence.startswith("Not measured")
    left = [r for r in one_kind.rows if "normalization none" not in r.quantity and "bare" not in r.quantity]
    assert left and all(r.ours is not None and np.isfinite(float(r.ours)) for r in left)
    if name == "layernorm":
        assert "is not measured where all trainings failed" in one_kind.sentence
        count = sum(failed) * len(saved["seeds"])
        assert f"{count} of {count} trainings without normalization failed" in one_kind.sentence
    else:
        # Where all without residual connections failed, what training does to them is not there; what is before it is.
        none = STUDIES[name].judge(settings, evidence([c.residual == "off" for c in cells(settings)])).sentence
        assert (
            "nan" not in none
            and "a property of the architecture, not measured" in none
            and "kept by training" not in none
        )


@pytest.mark.parametrize(
    ("name", "key", "where"),
    [
        ("gradients", "null", ...),  # the null of labels is not there for a language model
        ("information-bottleneck", "validation", (..., 0)),  # a step without an evaluation
        ("information", "null_input", ...),
        ("readings", "correlation", (0, 0, -1)),  # a setting whose states overflow
    ],
)
def test_what_is_not_there_by_design_voids_nothing(name, key, where):
    def change(seed, found, x):
        if found == key:
            x[where] = np.nan
        return x

    found = judged(name, change)
    assert found.passed and not found.sentence.startswith("Not measured")


def test_a_state_that_never_leaves_the_linear_regime_is_an_answer():
    """Infinite is "not within these sizes"; NaN is none."""
    inf, nan = (
        judged("perturbation", lambda seed, key, x, v=v: np.full_like(x, v) if key == "limit" else x)
        for v in (np.inf, np.nan)
    )
    assert inf.passed and "Both are linear up to ε ≈ 1e+00 (the largest) and 1e+00 (the largest):" in inf.sentence
    assert nan.sentence.startswith("Not measured: 2 of") and not nan.passed


def test_a_head_without_a_figure_is_matched_last():
    """Of three heads one is no number in one layer: the two others keep their partners, and the layer has no mean."""
    rng = np.random.default_rng(0)
    p = rng.random((2, 2, 3, 4, 4))
    p /= p.sum(axis=-1, keepdims=True)
    q = p[:, :, [1, 0, 2]].copy()
    q[1, :, 2] = np.nan
    found = three_ways(jnp.asarray(p), jnp.asarray(q), jnp.ones((2, 4), bool))
    assert np.isclose(found["matched_cosine"][0], 1) and np.isnan(found["matched_cosine"][1])
