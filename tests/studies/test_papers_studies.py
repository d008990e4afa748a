"""Every study, run whole at a size of seconds: the table is finite, the pictures are there, the sentence follows the numbers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from pdejax.studies import run
from pdejax.studies.papers import STUDIES
from pdejax.studies.papers._experiment import Settings
from pdejax.studies.papers._pairs import pooled

TINY = {
    "dim": 16,
    "ffn": 32,
    "layers": 2,
    "heads": 2,
    "steps": 8,
    "warmup": 2,
    "batch_size": 16,
    "eval_every": 4,
    "save_every": 4,
    "eval_examples": 32,
    "keep": 2,
}
LISTOPS = {**TINY, "dataset": "listops", "data": {"min_length": 3, "max_length": 12, "sizes": (400, 64, 64)}}
DIGITS = {**TINY, "dataset": "digits", "data": {"form": "patches", "patch": 4}}
OPTIONS = {
    "architectures": {
        "architectures": {"Vision Transformer": DIGITS, "causal decoder": {**LISTOPS, "options": {"causal": True}}}
    },
    "continuum": {"steps": (8, 16, 32), "regimes": (4, 16), "draws": 3, "length": 12, "dim": 8, "heads": 2},
    "discretization": {"steps_per_layer": (1, 2, 4), "reference": 16},
    "perturbation": {"epsilons": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "draws": 2},
}
TWO_SEEDS = ("alignment", "gradients", "continuum")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


def tiny(name: str) -> Settings:
    settings = STUDIES[name].presets["quick"]
    train = DIGITS if settings.train.get("dataset") == "digits" else LISTOPS
    options = {**settings.options, **OPTIONS.get(name, {})}
    if name == "readings":  # compared with a curve of six depths
        train = {**train, "layers": 5}
    return dataclasses.replace(
        settings,
        train=train if settings.train else {},
        student_steps=8,
        examples=24,
        options=options,
        seeds=2 if name in TWO_SEEDS else 1,  # a second seed costs time and runs no other line
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_whole(name, folder):
    study, settings = dataclasses.replace(STUDIES[name], resolve=None), tiny(name)
    result = run(study, settings, out=folder / name, shared=folder)
    content = result.to_json()
    assert len(content["table"]) >= 5 and content["verdict"].endswith(".") and "nan" not in content["verdict"]
    for line in content["table"]:
        assert line["ours"]["mean"] is not None, line["quantity"]
        assert len(line["ours"]["values"]) == settings.seeds
    printed = [line for line in content["table"] if line.get("paper")]
    assert printed or name in ("discretization", "architectures")
    beside = [line for line in content["table"] if line["null"]]
    assert beside or name in ("continuum", "discretization", "paper-size")
    assert content["figures"] and all((folder / name / f["file"]).stat().st_size > 5000 for f in content["figures"])
    with xr.open_dataset(folder / name / "result.nc", engine="scipy") as data:
        assert data.sizes["seed"] == settings.seeds
        assert any(np.isfinite(values).all() for values in data.data_vars.values())


def test_the_mean_token_is_that_of_real_ones():
    states = np.arange(12.0).reshape(2, 3, 2)
    mask = np.asarray([[True, True, False], [True, True, True]])
    found = pooled(jnp.asarray(np.where(mask[:, :, None], states, 0.0)), jnp.asarray(mask))
    np.testing.assert_allclose(found, [[1.0, 2.0], [8.0, 9.0]])
