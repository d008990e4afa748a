"""Every solver of the package × terms that do not fit: words that name the solver and what it wants, also in plain diffrax."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax import solvers

GRID = solvers.Grid(4)
U = jnp.ones((4, 2))
ODE = diffrax.ODETerm(lambda t, y, args: -y)
OPERATOR = solvers.DiagonalizableOperator(GRID, 0.1)
LINEAR = diffrax.ODETerm(OPERATOR)
MASKED = diffrax.ODETerm(solvers.TridiagonalOperator(GRID, jnp.full(4, 0.1)))

TERMS = {
    "nothing": None,
    "a function": lambda t, y, args: -y,
    "an operator": OPERATOR,
    "a tuple": (ODE, LINEAR),
    "a list": [ODE],
    "one": ODE,
    "one linear": LINEAR,
    "two": diffrax.MultiTerm(ODE, ODE),
    "rest and linear": diffrax.MultiTerm(ODE, LINEAR),
    "linear and rest": diffrax.MultiTerm(LINEAR, ODE),
    "rest and masked": diffrax.MultiTerm(ODE, MASKED),
    "three": diffrax.MultiTerm(ODE, ODE, LINEAR),
    "nested": diffrax.MultiTerm(ODE, diffrax.MultiTerm(ODE, LINEAR)),
}
ANY = {"one", "one linear", "two", "rest and linear", "linear and rest", "rest and masked", "three", "nested"}
TWO = {"two", "rest and linear", "linear and rest", "rest and masked", "nested"}
EXACT, IMPLICIT = {"rest and linear"}, {"rest and linear", "rest and masked"}

OWN = {name: row for name, row in solvers.SOLVERS.items() if type(row.make(2)).__module__.startswith("pdejax")}
# name: (solver, terms that fit, what the words must hold)
CASES = {
    name: (
        row.make(2),
        (EXACT if name in ("strangflow",) or name.startswith("etdrk") else IMPLICIT)
        if row.linear
        else TWO
        if row.splitting
        else ANY,
        row.make(2).__class__.__name__,
    )
    for name, row in OWN.items()
} | {
    "LinearFlow": (solvers.LinearFlow(), {"one linear"}, "LinearFlow"),
    "Retract": (solvers.Retract(solvers.RK4(), lambda u: u), ANY, "RK4"),
    "Retract of a splitting": (
        solvers.Retract(solvers.Strang((solvers.RK4(), solvers.RK4())), lambda u: u),
        TWO,
        "Strang",
    ),
    "a splitting in a splitting": (
        solvers.LieTrotter((solvers.RK4(), solvers.Strang((solvers.RK4(), solvers.LinearFlow())))),
        {"nested"},
        "LieTrotter",
    ),
    "step doubling": (diffrax.HalfSolver(solvers.ETDRK4()), EXACT, "ETDRK4"),
}


def test_every_solver_of_the_package_is_in_the_table():
    made = {type(solver).__name__ for solver, _, _ in CASES.values()} | {"ETDRK4"}
    public = {
        name
        for name in dir(solvers)
        if isinstance(one := getattr(solvers, name), type)
        and issubclass(one, diffrax.AbstractSolver)
        and one.__module__.startswith("pdejax")
    }
    assert public <= made, public - made


@pytest.mark.bad_input
@pytest.mark.parametrize("name", CASES)
def test_terms_that_do_not_fit(name):
    solver, fitting, owner = CASES[name]
    for kind, terms in TERMS.items():
        if kind in fitting:
            assert isinstance(terms, solver.term_structure)
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            diffrax.diffeqsolve(terms, solver, 0.0, 0.1, 0.1, U)
        text = str(caught.value)
        assert text.startswith(f"{owner}: ") and "must be" in text and ("ODETerm" in text or "MultiTerm" in text), text
        assert "\n" not in text and len(text) < 420, text  # never the arrays of a term


def test_terms_that_fit_are_solved():
    """u' = −u by RK4, and u' = −u + u + Lu in every form, by plain diffrax."""
    found = diffrax.diffeqsolve(ODE, solvers.RK4(), 0.0, 0.1, 0.1, U).ys
    assert float(found[0, 0, 0]) == pytest.approx(1 - 0.1 + 0.1**2 / 2 - 0.1**3 / 6 + 0.1**4 / 24, rel=1e-14)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "solver",
    [
        diffrax.SemiImplicitEuler(),
        diffrax.EulerHeun(),
        diffrax.ItoMilstein(),
        diffrax.StratonovichMilstein(),
        diffrax.ShARK(),
        diffrax.SPaRK(),
        diffrax.ALIGN(0.1),
        solvers.LieTrotter((diffrax.SemiImplicitEuler(), diffrax.Euler())),
        solvers.Retract(diffrax.ItoMilstein(), lambda u: u),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize(
    "field",
    [lambda t, u: -u, pj.MasterEquation(pj.FeedForward(2, 3, key=jax.random.key(0)), pj.LinearDamping(1.0))],
    ids=["function", "two terms"],
)
def test_solvers_of_other_equations(solver, field):
    """Milstein's method on two terms would take the second for noise, and solve another equation in silence."""
    with pytest.raises(ValueError, match=r"Discretization: .* is no solver of ∂u/∂t = f"):
        pj.Discretization(field, solver, t1=1.0, steps=2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "solver", [diffrax.LeapfrogMidpoint(), diffrax.ReversibleHeun()], ids=lambda s: type(s).__name__
)
def test_solvers_that_look_back(solver):
    """Where single steps are taken, the first of the midpoint rule with memory would be one of Euler's: order 1, in silence."""
    d = pj.Discretization(lambda t, u: -u, solver, t1=1.0, steps=64)
    assert float(pj.simulate(d, jnp.ones((1, 1))).us[0, 0, 0]) == pytest.approx(
        np.exp(-1), rel=1e-3
    )  # steps in a row are right
    an = pj.analysis
    for make in (
        lambda: solvers.LieTrotter((solver, diffrax.Euler())),
        lambda: solvers.Strang((diffrax.Euler(), solver)),
        lambda: solvers.Retract(solver, lambda u: u),
        lambda: an.lyapunov_exponents(d, U, k=1),
        lambda: an.jacobian.ftle(d, U),
        lambda: an.layer_jacobian(d, U, step=0),
        lambda: an.gradient_flow(d, U, loss=lambda u, *args: jnp.sum(u)),
        lambda: an.predict_dt_max(d, U),
        lambda: an.stability.measure_dt_max(d, U),
        lambda: an.stability.stability_factor(solver, -0.1 + 0j),
    ):
        with pytest.raises(ValueError, match=r"depends? on the step before"):
            make()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("solver", "terms"),
    [
        (solvers.ETDRK4(), diffrax.MultiTerm(ODE, LINEAR)),
        (solvers.Strang((solvers.RK4(), solvers.RK4())), diffrax.MultiTerm(ODE, ODE)),
        (solvers.LinearFlow(), LINEAR),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_backsolve_is_told_apart_from_what_is_in_it(solver, terms):
    """The adjoint's term holds what fits and is none of it: its state is the state, its adjoint and the arguments'."""

    def loss(u):
        adjoint = diffrax.BacksolveAdjoint()
        return jnp.sum(diffrax.diffeqsolve(terms, solver, 0.0, 1.0, 0.25, u, adjoint=adjoint).ys)

    with pytest.raises(
        TypeError, match=r"terms.* the adjoint of .* as BacksolveAdjoint makes it.* Use .*Recursive"
    ) as caught:
        jax.grad(loss)(U)
    assert str(caught.value).startswith(f"{type(solver).__name__}: ")
