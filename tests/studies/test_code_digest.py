"""Parts are keyed by the code that measured them: an edited study never takes what the old one left."""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from pdejax.runs import _code
from pdejax.runs._format import code
from pdejax.runs._parts import Parts
from pdejax.runs._records import Result
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
    return ran(measure, out).results["value"]


def ran(measure, out: pathlib.Path) -> Result:
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
    return run(study, {"a": 1}, out=out)


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


def test_results_say_which_code_measured_them(tmp_path, monkeypatch):
    """The library of a part that was kept is the one that measured it, not the one that reads it."""
    measure = measure_of(tmp_path / "own_study.py", 1.0)
    monkeypatch.setattr("pdejax.runs._parts.library_digest", lambda: "a" * 64)
    first = ran(measure, tmp_path / "out").code
    assert first["measured_by"] == code_digest(measure) and first["library"] == "a" * 64
    monkeypatch.setattr("pdejax.runs._parts.library_digest", lambda: "b" * 64)
    again = ran(measure, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "own.json").read_text())
    assert (
        again.code == first == saved["code"] == Result.from_json(saved).code and "library aaaaaaaaaaaa" in again.text()
    )
    # A part of before, which does not say.
    [kept] = (tmp_path / "out").glob("parts/*/one.json")
    kept.write_text('{"value": 1.0}')
    assert ran(measure, tmp_path / "out").code["library"] == "not recorded"
    parts = Parts(tmp_path / "arrays", "identity")
    assert list(parts.arrays("x", lambda: {"x": 1.0})) == list(parts.arrays("x", lambda: {"x": 2.0})) == ["x"]
    assert parts.libraries == {"b" * 64}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({}, "code not recorded"),
        ({"library": "1" * 64}, "library 111111111111"),
        ({"library": "1" * 64 + ", not recorded"}, "library 111111111111, not recorded"),
        ({"library": "1" * 64, "commit": "2" * 40 + " edited"}, "library 111111111111 of commit 222222222222 edited"),
        ("damaged", "code not recorded"),
    ],
)
def test_code_in_a_line(said, shown):
    assert code(said) == shown


def test_the_commit_is_that_of_the_librarys_own_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    place = tmp_path / "pdejax"
    place.mkdir()
    (place / "__init__.py").write_text("")
    monkeypatch.setattr(_code, "_LIBRARY", place)
    said = [_code.provenance(found).get("commit")]
    git("init", "-q")
    said.append(_code.provenance(found).get("commit"))  # installed inside another's repository
    git("add", ".")
    git("commit", "-q", "-m", "one")
    said.append(_code.provenance(found).get("commit"))
    (place / "__init__.py").write_text("edited")
    said.append(_code.provenance(found).get("commit"))
    head = git("rev-parse", "HEAD")
    assert said == [None, None, head, f"{head} edited"]


@pytest.mark.parametrize(("file", "counts"), [("solvers/_rk4.py", True), ("_simulate.py", True), ("cli.py", False)])
def test_the_librarys_digest_is_of_all_that_changes_numbers(file, counts, monkeypatch):
    """The solvers too, which lie beside the library in a checkout."""
    before, read = _code.library_digest.__wrapped__(), pathlib.Path.read_bytes

    def edited(path):
        return read(path) + (b"\n# edited\n" if path.as_posix().endswith(f"pdejax/{file}") else b"")

    monkeypatch.setattr(pathlib.Path, "read_bytes", edited)
    assert (_code.library_digest.__wrapped__() != before) == counts


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
