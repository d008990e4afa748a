"""The table of solvers: names, counts of evaluations, stability limits, refusals; and the package's
surface.
"""

import ast
import pathlib
import subprocess
import sys
import types

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import pdejax.solvers as solvers
from pdejax.solvers import (
    RK4,
    RKC2,
    ROCK2,
    SOLVERS,
    DiagonalizableOperator,
    Euler,
    Grid,
    Kvaerno5,
    LieTrotter,
    Midpoint,
    Retract,
    Strang,
    Tsit5,
    evaluations,
    get_solver,
    linear_part,
    real_stability_limit,
    stability_function,
)

# Order, adaptive, evaluations per step (two terms for the splittings), limit (THEORY §5.10).
EXPECTED = {
    "euler": (1, False, 1, 2.0),
    "heun": (2, True, 2, 2.0),
    "midpoint": (2, True, 2, 2.0),
    "bosh3": (3, True, 3, 2.5127),
    "rk4": (4, False, 4, 2.78529),
    "tsit5": (5, True, 6, 3.5069),
    "dopri5": (5, True, 6, 3.3066),
    "dopri8": (8, True, 13, 5.1666),
    "kvaerno5": (5, True, None, np.inf),
    "lietrotter": (1, False, 2, None),
    "strang": (2, False, 6, None),
    "macaron": (1, False, 3, None),
    "strangflow": (2, False, 2, None),
    "etdrk1": (1, True, 1, None),
    "etdrk2": (2, True, 2, None),
    "etdrk4": (4, True, 4, None),
    "etdrk4ho": (4, True, 5, None),
    "ars222": (2, True, 2, None),
    "ark3": (3, True, 4, None),
    "ark4": (4, True, 6, None),
    "rkc2": (2, True, None, None),
    "rock2": (2, True, None, None),
}
SPLITTINGS = {"lietrotter", "strang", "macaron", "strangflow"}
LINEAR = {"strangflow", "etdrk1", "etdrk2", "etdrk4", "etdrk4ho", "ars222", "ark3", "ark4"}


def test_table():
    assert list(SOLVERS) == list(EXPECTED)
    for name, (order, adaptive, count, limit) in EXPECTED.items():
        info = SOLVERS[name]
        assert info.name == name and info.note
        assert (info.order, info.adaptive, info.evaluations) == (order, adaptive, count)
        assert info.splitting == (name in SPLITTINGS) and info.linear == (name in LINEAR)
        if limit is None:
            assert info.real_limit is None
        else:
            np.testing.assert_allclose(info.real_limit, limit, rtol=3e-5)
        terms = diffrax.MultiTerm(*[diffrax.ODETerm(lambda t, y, args: y)] * 2)
        assert info.make(2).order(terms) == order


# One method of each number of stages, and ours; the limits of the others are those of their tableaus, above.
@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "tsit5", "dopri8"])
def test_stability_limit_is_that_of_the_steps(name):
    """40 steps from noise on u' = λu: decay at 0.95 of the limit, growth at 1.10; and R(z) is the computed
    step.
    """
    limit, (numerator, denominator) = SOLVERS[name].real_limit, stability_function(get_solver(name))

    @jax.jit
    def after(z, steps):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, u, args: z * u),
            get_solver(name),
            0.0,
            steps,
            1.0,
            jnp.ones(1),
            adjoint=diffrax.ForwardMode(),
            max_steps=64,
        ).ys[-1, 0]

    assert abs(float(after(-0.95 * limit, 40.0))) < 1.0
    assert abs(float(after(-1.10 * limit, 40.0))) > 1e3
    for z in (-0.3, -1.7, -limit):
        ratio = np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
        np.testing.assert_allclose(float(after(z, 1.0)), ratio, rtol=1e-12, atol=1e-13)


def test_stability_function_of_an_implicit_method():
    """R of Kvaerno5 from its own steps; L-stable, so that R → 0."""
    numerator, denominator = stability_function(Kvaerno5())
    solver = Kvaerno5(root_finder=optimistix.Newton(rtol=1e-12, atol=1e-12))

    @jax.jit
    def after(z):
        term = diffrax.ODETerm(lambda t, u, args: z * u)
        return diffrax.diffeqsolve(
            term, solver, 0.0, 1.0, 1.0, jnp.ones(1), max_steps=2, adjoint=diffrax.ForwardMode()
        ).ys[-1, 0]

    for z in (-0.5, -20.0):
        ratio = np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
        np.testing.assert_allclose(float(after(z)), ratio, rtol=1e-8, atol=1e-10)
    assert abs(np.polyval(numerator[::-1], -1e8) / np.polyval(denominator[::-1], -1e8)) < 1e-6


def test_no_limit_without_a_tableau():
    for solver in (LieTrotter((Euler(),)), Retract(Euler(), jnp.tanh), diffrax.HalfSolver(Tsit5()), diffrax.KenCarp4()):
        assert real_stability_limit(solver) is None and stability_function(solver) is None


# Methods that are counted by the same lines as another one here, or, the exponential ones, in `test_etdrk_control.py`.
ALIKE = ("midpoint", "bosh3", "dopri5", "macaron", "ars222", "ark3", "etdrk1", "etdrk2", "etdrk4ho")
COUNTED = [
    *(get_solver(name, terms=2) for name in EXPECTED if name not in ("kvaerno5", "rkc2", "rock2", *ALIKE)),
    RKC2(stages=5),
    ROCK2(stages=5),
    Retract(RK4(), jnp.tanh),
    LieTrotter((Tsit5(), Retract(Euler(), jnp.tanh))),
    Strang((Tsit5(), Strang((Euler(), Midpoint())))),
]


@pytest.mark.parametrize("solver", COUNTED, ids=lambda solver: type(solver).__name__)
def test_evaluations_are_those_that_happen(solver):
    """Counted by a callback in every term, in a solve of three steps."""
    calls = []

    def term():
        # The callback has no side effect that XLA knows of: dead evaluations go, as they do in any field.
        def observe(u):
            calls.append(None)
            return u

        def field(t, u, args):
            return jax.pure_callback(observe, jax.ShapeDtypeStruct(u.shape, u.dtype), jnp.sin(u + t))

        return diffrax.ODETerm(field)

    def build(structure):
        if linear_part(structure) is not None:
            return diffrax.MultiTerm(term(), diffrax.ODETerm(DiagonalizableOperator(Grid(2), 0.1)))
        if isinstance(structure, LieTrotter | Strang):
            return diffrax.MultiTerm(*(build(part) for part in structure.solvers))
        return term()

    solve = eqx.filter_jit(
        lambda terms: diffrax.diffeqsolve(
            terms, solver, 0.0, 1.0, 1 / 3, jnp.ones((2, 1)), max_steps=4, adjoint=diffrax.ForwardMode()
        )
    )
    solution = solve(build(solver))
    jax.block_until_ready(solution.ys)
    assert int(solution.stats["num_steps"]) == 3
    assert len(calls) == evaluations(solver, 3)


def test_evaluations_refuse():
    implicit = Kvaerno5(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-8))
    assert evaluations(implicit, 3) is None
    assert evaluations(LieTrotter((Euler(), implicit)), 3) is None
    assert evaluations(Retract(implicit, jnp.tanh), 3) is None
    assert evaluations(RKC2(), 3) is None
    with pytest.raises(TypeError, match="HalfSolver are not known"):
        evaluations(diffrax.HalfSolver(Tsit5()), 3)
    for steps in (0, -1):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            evaluations(Euler(), steps)
    for steps in (2.0, True, "3"):
        with pytest.raises(TypeError, match="steps must be an integer"):
            evaluations(Euler(), steps)


def test_get_solver():
    solver = Tsit5()
    assert get_solver(solver) is solver and get_solver(solver, terms=3) is solver
    assert get_solver("rk4") == RK4()
    assert get_solver("lietrotter", terms=3) == LieTrotter((Euler(),) * 3)
    assert get_solver("strang", terms=2) == Strang((Midpoint(), Midpoint()))
    assert get_solver("macaron", terms=2) == Strang((Euler(), Euler()))
    with pytest.raises(ValueError, match=r"unknown solver 'rk5'.*Did you mean 'rk4'.*euler, heun"):
        get_solver("rk5")
    with pytest.raises(ValueError, match="Did you mean 'tsit5'"):
        get_solver("Tsit5")
    with pytest.raises(ValueError, match=r"unknown solver 'zzz'\. Known"):
        get_solver("zzz")
    with pytest.raises(TypeError, match=r"call it to make a solver: RK4\(\)"):
        get_solver(RK4)
    with pytest.raises(TypeError, match="must be a name or a diffrax solver; got 4"):
        get_solver(4)
    for terms, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="number of terms"):
            get_solver("strang", terms=terms)


def test_public_names():
    expected = """ARK3 ARK4 ARS222 AbstractLinearOperator BlowupGuard Bosh3 CoupledOperator DiagonalizableOperator Dopri5 Dopri8
    ETDRK1 ETDRK2 ETDRK4 Euler Grid GuardState Heun Kvaerno5 Laplacian LieTrotter LinearFlow Midpoint RK4 RKC2 ROCK2
    Retract SOLVERS SolverInfo StabilizedState Strang TridiagonalOperator Tsit5 divergence evaluations get_solver
    linear_part real_stability_limit stability_function
               """
    # Modules aside: the type checker of the test run puts some there.
    names = (name for name, value in vars(solvers).items() if not isinstance(value, types.ModuleType))
    assert sorted(name for name in names if not name.startswith("_")) == sorted(expected.split())


def test_imports_nothing_of_the_other_half():
    folder = pathlib.Path(solvers.__file__).parent
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: relative import"
                names = [node.module]
            for name in names:
                assert not name.startswith("pdejax") or name.startswith(
                    ("pdejax.solvers", "pdejax._arguments", "pdejax._axes")
                ), f"{path.name}: {name}"


def test_refuses_another_name():
    root = pathlib.Path(solvers.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", "import solvers"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "this package is pdejax.solvers, but was imported as 'solvers'" in done.stderr


def test_classes_are_abstract_or_final():
    """A concrete class of this package has no subclasses, and nothing calls super()."""
    folder = pathlib.Path(solvers.__file__).parent
    classes, bases = set(), set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id == "super"), path.name
            if isinstance(node, ast.ClassDef):
                classes.add(node.name)
                bases.update(base.id for base in node.bases if isinstance(base, ast.Name))
    assert all(name.startswith("Abstract") for name in classes & bases)
