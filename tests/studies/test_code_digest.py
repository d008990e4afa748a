"""Parts are keyed by the code that measured them: an edited study never takes what the old one left."""

import functools
import importlib.util
import pathlib
import sys

import pytest

from pdejax.runs._parts import Parts
from pdejax.studies.audit._audit import AUDIT
from pdejax.studies.claims._ledger import LEDGER
from pdejax.studies.numerics._convergence import CONVERGENCE
from pdejax.studies.papers import STUDIES
from pdejax.studies.study import Judgement, Study, code_digest, run

SOURCE = """
def measure(config, seed, parts):
    return {{"value": parts.get("one", lambda: {value})}}
"""


def measure_of(path: pathlib.Path, value: float):
    path.write_text(SOURCE.format(value=value))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.measure


def found(measure, out: pathlib.Path) -> float:
    study = Study(
        name="own",
        title="",
        question="",
        source="",
        measure=measure,
        judge=lambda config, evidence: Judgement(results=dict(evidence[0])),
        seeds=lambda config: (0,),
        saved=lambda config: config,
    )
    return run(study, {"a": 1}, out=out).results["value"]


def test_an_edited_measure_does_not_take_old_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # Python takes an edit of equal length in the same second for none
    own, out = tmp_path / "own_study.py", tmp_path / "out"
    assert found(measure_of(own, 1.0), out) == 1.0
    assert found(measure_of(own, 2.0), out) == 2.0
    assert len(list(out.glob("parts/*/one.json"))) == 2
    # The first again: its part is still there, and is what is read.
    [kept] = [path for path in out.glob("parts/*/one.json") if '"value": 1.0' in path.read_text()]
    kept.write_text(kept.read_text().replace('"value": 1.0', '"value": 7.0'))
    assert found(measure_of(own, 1.0), out) == 7.0


# A file of the code that measures a study, and one that is none of it: of another, or that judges what was measured.
CODE = [
    (AUDIT, "audit/_measure.py", True),
    (AUDIT, "audit/_judge.py", False),
    (AUDIT, "papers/_alignment.py", False),
    (LEDGER, "claims/_c4_energy.py", True),
    (LEDGER, "audit/_measure.py", False),
    (CONVERGENCE, "numerics/_convergence.py", True),
    (CONVERGENCE, "numerics/_convergence_case.py", True),
    (CONVERGENCE, "numerics/_stiff.py", False),
    (STUDIES["alignment"], "papers/_alignment.py", True),
    (STUDIES["alignment"], "papers/_experiment.py", True),
    (STUDIES["alignment"], "papers/_text.py", False),
    (STUDIES["gradients"], "papers/_text.py", True),
]


@pytest.mark.parametrize(("study", "file", "counts"), CODE, ids=lambda x: getattr(x, "name", str(x)))
def test_the_digest_is_of_the_studys_own_code(study, file, counts, monkeypatch):
    before, read = code_digest(study.measure), pathlib.Path.read_bytes
    assert code_digest(study.measure) == before

    def edited(path):
        return read(path) + (b"\n# edited\n" if path.as_posix().endswith(f"studies/{file}") else b"")

    monkeypatch.setattr(pathlib.Path, "read_bytes", edited)
    assert (code_digest(study.measure) != before) == counts


@pytest.mark.parametrize("name", STUDIES)
def test_every_experiment_says_its_command(name, tmp_path):
    assert STUDIES[name].command == f"reproduce {name}"
    parts = Parts(tmp_path, [name], command=f"reproduce {name}")
    parts.get("one", lambda: 1)
    [about] = tmp_path.glob("parts/*/about.json")
    assert f'"reproduce {name}"' in about.read_text()


def test_code_without_a_file_is_told_apart_by_its_constants_and_closure():
    """As in a notebook: the same byte code with another constant, name, default, closure or argument is another measurement."""

    def made(source):
        space = {}
        exec(source, space)
        return space["f"]

    def closed(k):
        space = {}
        exec("def g(k):\n    return lambda s: k * s", space)
        return space["g"](k)

    written = [
        "def f(s): return 2 * s",
        "def f(s): return 3 * s",
        "def f(s, k=1): return k * s",
        "def f(s, k=2): return k * s",
    ]
    written += [
        "def f(s): return (lambda: 2 * s)()",
        "def f(s): return (lambda: 3 * s)()",
        "def f(s): return a(s)",
        "def f(s): return b(s)",
    ]
    functions = [made(source) for source in written] + [closed(2), closed(3)]
    functions += [functools.partial(made(written[2]), k=k) for k in (2, 3)]
    digests = [code_digest(f) for f in functions]
    assert len(set(digests)) == len(digests)
    assert code_digest(made(written[0])) == digests[0]
