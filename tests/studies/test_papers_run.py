"""Running an experiment: what is kept, what is measured again, what is refused."""

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from pdejax.runs import ResultError
from pdejax.runs._command import Console
from pdejax.runs._records import Picture
from pdejax.runs.report import build_report
from pdejax.studies import Judgement
from pdejax.studies import run as run_study
from pdejax.studies.papers import STUDIES, reproduce
from pdejax.studies.papers._architectures import architectures
from pdejax.studies.papers._command import COMMAND
from pdejax.studies.papers._components import cells
from pdejax.studies.papers._experiment import KINDS, NATIVE, Models, Settings, experiment, row, stacked


class Bench:
    """A study that counts how often it measures, and fails where it is told to."""

    def __init__(self):
        self.seen = []
        self.fail_at = None

    def measure(self, settings, seed, models):
        if seed == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(seed)
        return {"x": np.asarray([seed, settings.options["size"]], float)}

    def judge(self, settings, evidence):
        x = stacked(evidence, "x")

        def draw():
            figure = Figure()
            figure.subplots().plot(x[:, 0])
            return figure

        rows = [row("x", x[:, 0], paper="0.5", null=x[:, 1], null_name="size", unit="m", note="of a bench")]
        data = xr.Dataset({"x": (("seed", "k"), x)})
        return Judgement(
            rows=rows, sentence=f"mean {x[:, 0].mean():g}", dataset=data, pictures=[Picture("x.png", "x", draw)]
        )

    def study(self, **options):
        settings = Settings(options={"size": 3.0, **options}, seeds=2)
        return experiment(
            name="bench",
            title="Bench",
            question="?",
            source="here",
            presets={"quick": settings},
            measure=self.measure,
            judge=self.judge,
        ), settings


@pytest.fixture
def bench():
    return Bench()


def run(bench, folder, seeds=None, **options):
    study, settings = bench.study(**options)
    return run_study(
        study,
        settings,
        out=folder / "bench",
        shared=folder,
        preset="quick",
        seeds=None if seeds is None else range(seeds),
    )


def test_a_result_holds_table_verdict_data_and_pictures(bench, tmp_path):
    result = run(bench, tmp_path, seeds=3)
    content = json.loads((tmp_path / "bench" / "result.json").read_text())
    assert content == result.to_json() and content["verdict"] == result.verdict == "mean 1"
    [line] = content["table"]
    assert line["ours"]["mean"] == 1 and line["ours"]["values"] == [0, 1, 2] and line["null"]["mean"] == 3
    assert (tmp_path / "bench" / "x.png").read_bytes().startswith(b"\x89PNG")
    with xr.open_dataset(tmp_path / "bench" / "result.nc", engine="scipy") as data:
        np.testing.assert_array_equal(data["x"].values[:, 0], [0, 1, 2])
    assert all(words in result.text() for words in ("x [m]", "0.5", "(size)"))


def test_a_finished_study_is_read_and_more_seeds_add_to_it(bench, tmp_path):
    first = run(bench, tmp_path)
    again = run(bench, tmp_path)
    assert bench.seen == [0, 1] and again.to_json()["table"] == first.to_json()["table"]
    run(bench, tmp_path, seeds=4)
    assert bench.seen == [0, 1, 2, 3]
    run(bench, tmp_path, size=5.0)
    assert bench.seen == [0, 1, 2, 3, 0, 1]


def test_an_interrupted_study_goes_on(bench, tmp_path):
    bench.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        run(bench, tmp_path, seeds=4)
    assert not (tmp_path / "bench" / "result.json").exists()
    bench.fail_at = None
    run(bench, tmp_path, seeds=4)
    assert bench.seen == [0, 1, 2, 3]


def test_the_seconds_are_those_of_all_seeds_whenever_they_were_measured(bench, tmp_path, monkeypatch):
    plain = bench.measure

    def slowly(settings, seed, models):
        time.sleep(0.1)
        return plain(settings, seed, models)

    bench.measure = slowly
    assert run(bench, tmp_path).seconds > 0.2
    (tmp_path / "bench" / "result.json").unlink()
    assert run(bench, tmp_path, seeds=3).seconds > 0.3 and bench.seen == [0, 1, 2]


def test_damaged_files_are_measured_again(bench, tmp_path):
    run(bench, tmp_path)
    folder = tmp_path / "bench"
    (folder / "x.png").unlink()
    [part] = folder.glob("parts/*/seed-1.npz")
    part.write_bytes(part.read_bytes()[:40])
    run(bench, tmp_path)
    assert bench.seen == [0, 1, 1] and (folder / "x.png").exists()


def test_another_machine_does_not_take_these_results(bench, tmp_path, monkeypatch):
    run(bench, tmp_path)
    monkeypatch.setattr("pdejax.runs._parts.environment", lambda: {"device": "another"})
    run(bench, tmp_path)
    assert bench.seen == [0, 1, 0, 1]


def test_a_figure_that_is_not_finite_is_said_to_be_so(bench, tmp_path):
    class Broken(Bench):
        def measure(self, settings, seed, models):
            return {"x": np.asarray([np.nan, 1.0])}

    result = run(Broken(), tmp_path)
    assert result.to_json()["table"][0]["ours"]["mean"] is None
    assert any(line.split()[:4] == ["x", "[m]", "0.5", "–"] for line in result.text().splitlines())


def test_objects_are_no_measurements(bench, tmp_path):
    bench.measure = lambda settings, seed, models: {"x": np.asarray([None])}
    with pytest.raises(ResultError, match="not arrays of numbers"):
        run(bench, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"studies": ["alinement"]}, "alinement"),
        ({"preset": "slow"}, "slow"),
        ({"seeds": 0}, "seeds=0"),
    ],
)
def test_what_is_refused(arguments, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        reproduce(**{"studies": ["continuum"], "out": tmp_path} | arguments)
    with pytest.raises(TypeError, match=r"seeds=1\.5"):
        reproduce(["continuum"], seeds=1.5, out=tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="file"):
        reproduce(["continuum"], out=tmp_path / "file")


def test_every_study_has_both_presets_and_says_what_it_asks():
    for name, study in STUDIES.items():
        assert study.name == name and set(study.presets) == {"quick", "standard", "paper"}
        assert study.question.endswith("?") and study.source
        assert dataclasses.is_dataclass(study.preset("quick")) and study.preset("paper").seeds >= 5
        assert study.preset("standard").seeds >= 5
    with pytest.raises(ValueError, match="'huge'"):
        next(iter(STUDIES.values())).preset("huge")


def test_what_reproduce_leaves_is_what_the_report_reads(bench, tmp_path, monkeypatch):
    """Folders beside the studies (compiled programs, models) are no unfinished studies."""
    study, _ = bench.study()
    monkeypatch.setattr("pdejax.studies.papers._run.STUDIES", {"bench": study})
    reproduce(out=tmp_path)
    for name in ("programs", "models"):
        (tmp_path / name).mkdir(exist_ok=True)
    built = build_report(tmp_path)
    assert built.problems == () and built.studies == 1
    assert set(path.name for path in tmp_path.iterdir()) == {"bench", "programs", "models", "report.html", "report.md"}


def test_the_command_fails_where_a_study_does_not_pass(bench, tmp_path, monkeypatch, capsys):
    study, _ = bench.study()
    monkeypatch.setattr("pdejax.studies.papers._run.STUDIES", {"bench": study})
    given, console = {"studies": ("bench",), "out": str(tmp_path)}, Console(argparse.Namespace(quiet=True, json=False))
    assert COMMAND.run(given, console) == 0

    def violated(settings, evidence):
        return dataclasses.replace(bench.judge(settings, evidence), passed=False)

    monkeypatch.setattr("pdejax.studies.papers._run.STUDIES", {"bench": dataclasses.replace(study, judge=violated)})
    assert COMMAND.run(given, console) == 1
    assert "saved" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["quick", "standard", "paper"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_model_of_every_preset_can_be_configured(name, preset, tmp_path):
    """Nothing is found to be wrong after hours: every training that a study asks for is a valid configuration."""
    settings, models = STUDIES[name].presets[preset], Models(tmp_path)
    named = architectures(settings).values() if name == "architectures" else [settings] if settings.train else []
    for own in named:
        configs = [models.transformer_config(own, 0), *(cells_of(own) if "steps" in own.options else [])]
        if own.student_steps:
            kinds = KINDS if name == "distillation" else [NATIVE]
            configs += [models.student_config(own, 0, kind) for kind in kinds]
        for config in configs:
            assert config.steps > 0 and config.dim % config.heads == 0 and config.seed == 0
        digests = {models._folder(config) for config in configs}
        assert len(digests) == len(configs)
    assert named or name == "continuum"


def cells_of(settings):
    return [cell.config(settings, 0) for cell in cells(settings)]


TINY = {
    **{"dataset": "listops", "dim": 8, "ffn": 16, "layers": 1, "heads": 2, "steps": 4, "batch_size": 8},
    **{"eval_every": 4, "save_every": 2, "eval_examples": 8},
    "data": {"min_length": 3, "max_length": 8, "sizes": (64, 16, 16)},
}


@pytest.mark.slow
def test_models_are_trained_side_by_side_as_one_by_one(tmp_path):
    settings = Settings(train=TINY, student_steps=4)
    alone, beside = Models(tmp_path / "alone"), Models(tmp_path / "beside")
    beside.prepare(settings, 0, ("distilled", "independent", "bare"))
    folders = sorted(path.name for path in beside.folder.iterdir())
    assert len(folders) == 4 and all((beside.folder / name / "result.json").exists() for name in folders)
    for pairing in ("distilled", "independent", "bare"):
        one, other = (models.simulator(settings, 0, pairing) for models in (alone, beside))
        assert one.folder.name == other.folder.name and one.test == other.test
        for a, b in zip(jax.tree.leaves(one.model), jax.tree.leaves(other.model), strict=True):
            assert jnp.array_equal(a, b)


@pytest.mark.slow
def test_trainings_side_by_side_are_saved_where_they_are_interrupted(tmp_path, monkeypatch):
    settings = Settings(train={**TINY, "steps": 4000, "save_every": 4000}, student_steps=4)
    models = Models(tmp_path)

    def interrupt(jobs):
        deadline = time.monotonic() + 120
        while sum(path.read_text().count("\n") > 5 for path in tmp_path.glob("*/metrics.csv")) < 2:
            assert time.monotonic() < deadline, "no training has begun"
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr("pdejax.studies.papers._experiment.concurrent.futures.wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.prepare(settings, 0, ("bare",))
    assert not models.stopped.is_set()
    for folder in tmp_path.iterdir():
        step = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
        assert 0 < step < 4000 and not (folder / "result.json").exists()
