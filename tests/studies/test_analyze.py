"""`pdejax analyze`: every figure has its layers and its null; two runs are compared; what is refused."""

import json

import numpy as np
import pytest
import xarray as xr

from pdejax import cli
from pdejax.analysis import layer_correlation
from pdejax.data import load
from pdejax.studies import analyze
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
    assert len(lines) == len(content["results"]["lines"]) >= 20
    for line in lines.values():
        assert np.all(np.isfinite(line["values"])) and len(line["values"]) == 3 - line["first"]
        assert line["null"] is None or len(line["null"]) == len(line["values"])
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
    assert len(list(out.glob("*.png"))) >= 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"examples": 1}, "examples=1"),
        ({"seed": -1}, "seed=-1"),
        ({"noise": 0.0}, "noise=0.0"),
        ({}, "config.json"),
    ],
)
def test_what_is_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        analyze(tmp_path, **options)


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
    assert len(listed) == 14 and any(line.startswith("alignment") for line in listed)
