"""Sweeps: what must not be served, judged, lost or rounded without a word."""

import dataclasses
import errno
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
from pdejax.runs.sweep._store import Store
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


def squares(key, *, x):
    return {"y": x * x}


def test_two_processes_that_start_together_without_locks_lose_nothing(tmp_path, monkeypatch):
    """The other one makes the store, and measures, between this one's look and its own making."""
    pytest.importorskip("zarr")
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    made, create = small(measure=squares, chunk=1), Store._make

    def late(self, folder):
        monkeypatch.setattr(Store, "_make", create)
        assert run_sweep(made, tmp_path, shard="0/2").measured == 2
        create(self, folder)

    monkeypatch.setattr(Store, "_make", late)
    progress = run_sweep(made, tmp_path, shard="1/2")
    assert progress.complete and progress.measured == 1
    assert progress.dataset().y.values.ravel().tolist() == [1.0, 4.0, 9.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done", "locks", "manifest.json", "sweep.zarr"]


def test_a_store_without_its_manifest_is_taken_up_or_refused(tmp_path):
    pytest.importorskip("zarr")
    made = small(measure=squares, chunk=1)
    run_sweep(made, tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert run_sweep(made, tmp_path).measured == 0 and (tmp_path / "manifest.json").exists()
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ResultError, match="is of another sweep, or half of one"):
        run_sweep(dataclasses.replace(made, base=1), tmp_path)
    assert run_sweep(made, tmp_path).measured == 0


def test_what_another_process_marked_is_looked_at_before_all_is_said_to_be_there(tmp_path):
    pytest.importorskip("zarr")
    made = small(measure=squares, chunk=1)
    run_sweep(made, tmp_path, shard="0/2")
    file = tmp_path / "sweep.zarr" / "y" / "c" / "0" / "0"
    file.write_bytes(file.read_bytes()[:5])
    progress = run_sweep(made, tmp_path, shard="1/2")
    assert progress.measured == 1 and progress.done == 2 and not progress.complete
    assert run_sweep(made, tmp_path).complete


@pytest.mark.bad_input
def test_values_that_do_not_fit_are_refused():
    with jax.enable_x64(False):
        for n in ((1, 3_000_000_000), (-3_000_000_000, 1)):
            with pytest.raises(
                ValueError, match=r"an axis has -?3000000000, beyond int32, as JAX is set; make the axis static"
            ):
                collect_sweep(small(axes={"n": n}, measure=lambda key, *, n: {"y": n}, chunk=1))
        with pytest.raises(ValueError, match=r"an axis has 1e\+39, beyond float32"):
            collect_sweep(small(axes={"x": (1.0, 1e39)}))
        made = small(axes={"n": (1, 3_000_000_000)}, static=("n",), measure=lambda key, *, n: {"y": 1.0 * n})
        assert collect_sweep(made).y.values.ravel().tolist() == [1.0, 3e9]
        assert collect_sweep(small(axes={"n": (1, 2**31 - 1)}, measure=lambda key, *, n: {"y": n})).y[1, 0] == 2**31 - 1


@pytest.mark.bad_input
def test_numbers_of_another_type_than_the_first_are_not_rounded():
    with pytest.raises(ValueError, match=r"measure gives 'y' as float\d\d here and as int\d\d at the first point"):
        collect_sweep(small(axes={"n": (2, 3)}, static=("n",), measure=lambda key, *, n: {"y": n if n == 2 else 0.5}))
    # The other way nothing is lost.
    made = small(axes={"n": (2, 3)}, static=("n",), measure=lambda key, *, n: {"y": 0.5 if n == 2 else n})
    assert collect_sweep(made).y.values.ravel().tolist() == [0.5, 3.0]
    with pytest.raises(ValueError, match="measure gives 'y' as complex128 here and as float64"):
        collect_sweep(small(traced=False, measure=lambda seed, *, x: {"y": x + 0.5j}))
