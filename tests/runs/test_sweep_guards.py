"""Sweeps: what must not be served, judged, lost or rounded without a word."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_sweep import held

from pdejax.runs import ResultError
from pdejax.runs import _code as code_module
from pdejax.runs._parts import Parts
from pdejax.runs.sweep import Sweep, collect_sweep, run_sweep
from pdejax.studies import PhasesConfig, phase_diagram


def small(**changes):
    given = {"measure": lambda key, *, x: {"y": x * x}, "axes": {"x": (1.0, 2.0, 3.0)}, "dims": {"y": ()}}
    return Sweep(**{**given, **changes})


def test_a_diagram_is_not_judged_while_another_process_measures_it(tmp_path):
    pytest.importorskip("zarr")
    config = PhasesConfig(
        betas=2, tokens=(3,), normalization=("none",), dim=2, t1=1.0, depths=2, step=0.01, seeds=2, chunk=2, out=str(tmp_path)
    )  # fmt: skip
    with held(tmp_path, 1), pytest.raises(ResultError, match=r"1 of 2 chunks are another process's; run again"):
        phase_diagram(config)
    assert phase_diagram(config).results["not_finite"] == 0


def scaled(a):
    def measure(key, *, x):
        return {"y": a * x}

    return measure


@dataclasses.dataclass(frozen=True)
class Called:
    a: float

    def __call__(self, key, *, x):
        return {"y": self.a * x}

    def method(self, key, *, x):
        return {"y": self.a * x}


def defaults(a):
    def measure(key, *, x, factor=a):
        return {"y": factor * x}

    return measure


def nested(a):
    inner = scaled(a)
    return lambda key, *, x: inner(key, x=x)


GLOBAL = 1.0


def of_a_global(key, *, x):
    return {"y": next(GLOBAL * x for _ in range(1))}


MAKERS = {
    "closure": scaled,
    "array": lambda a: scaled(np.full((), a)),
    "array of JAX": lambda a: scaled(jnp.asarray(a)),
    "default": defaults,
    "partial": lambda a: functools.partial(lambda key, factor, *, x: {"y": factor * x}, factor=a),
    "partial of a closure": lambda a: functools.partial(scaled(a)),
    "array in a partial": lambda a: functools.partial(
        lambda key, factor, *, x: {"y": factor * x}, factor=jnp.asarray(a)
    ),
    "function in a closure": nested,
    "jit": lambda a: jax.jit(scaled(a)),
    "object": Called,
    "method": lambda a: Called(a).method,
    "list": lambda a: (lambda values: lambda key, *, x: {"y": values[0] * x})([a]),
    "dict": lambda a: (lambda values: lambda key, *, x: {"y": values["a"] * x})({"a": a}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_numbers_belong_to_what_the_function_is_bound_to(name):
    keys = [small(measure=MAKERS[name](a)).identity()["key"] for a in (1.0, 1.0, 10.0)]
    assert keys[0] == keys[1] != keys[2]


def test_a_global_number_counts(monkeypatch):
    before = small(measure=of_a_global).identity()["key"]
    monkeypatch.setitem(globals(), "GLOBAL", 2.0)
    assert small(measure=of_a_global).identity()["key"] != before


def test_a_store_does_not_serve_the_numbers_of_other_parameters(tmp_path):
    pytest.importorskip("zarr")
    assert run_sweep(small(measure=scaled(1.0)), tmp_path / "store").complete
    with pytest.raises(ResultError, match="holds another sweep: bound differs"):
        run_sweep(small(measure=scaled(10.0)), tmp_path / "store")
    parts = Parts(tmp_path, "identity")
    ends = [float(collect_sweep(small(measure=scaled(a)), parts=parts).y[-1, 0]) for a in (1.0, 10.0)]
    assert ends == [3.0, 30.0]


def test_the_library_is_part_of_what_a_sweep_is(tmp_path, monkeypatch):
    found = small().identity()["versions"]
    assert {"pdejax", "jax", "jaxlib"} < set(found)
    # An edit of a solver, which no version tells of; and one of a picture, which changes no number.
    for file in ("solvers/_rk4.py", "plot/_style.py", "runs/sweep/_measure.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("before")
    monkeypatch.setattr(code_module, "_LIBRARY", tmp_path)
    digests = []
    for file in ("plot/_style.py", "solvers/_rk4.py", "runs/sweep/_measure.py"):
        (tmp_path / file).write_text("after")
        digests.append(code_module.library_digest.__wrapped__())
    assert len(set(digests)) == 3
    (tmp_path / "plot" / "_style.py").write_text("again")
    assert code_module.library_digest.__wrapped__() == digests[-1]


@pytest.mark.bad_input
def test_objects_that_say_nothing_of_themselves_must_be_spoken_for():
    class Opaque:
        a = 1.0

    with pytest.raises(ValueError, match="a of measure is a Opaque, which says nothing of itself; say in given="):
        small(measure=scaled(Opaque())).identity()
    assert small(measure=scaled(Opaque()), given={"a": 1.0}).identity()["key"]
