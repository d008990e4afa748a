"""RK4, splittings and retraction, step by step: textbook twins, Transformer blocks, gradients, cost,
refusals.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from pdejax.solvers import RK4, Euler, Kvaerno5, LieTrotter, Midpoint, Retract, Strang, Tsit5


def _attention(t, u, args):
    """Softmax attention of the tokens, with a depth-dependent strength."""
    logits = u @ u.T / u.shape[1] ** 0.5
    return (1.0 + 0.3 * jnp.sin(t)) * jax.nn.softmax(logits, axis=1) @ u - 0.2 * u


def _feed_forward(t, u, args):
    weight = jnp.eye(u.shape[1], dtype=u.dtype) + 0.1
    return jnp.tanh(u @ weight + t) @ weight.T - u


FIELDS = (_attention, _feed_forward)
SPLIT = diffrax.MultiTerm(*(diffrax.ODETerm(field) for field in FIELDS))


def _layer_norm(u):
    centred = u - jnp.mean(u, axis=1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True))


@pytest.fixture
def u0():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))


@eqx.filter_jit
def _run(terms, solver, u0, t1, steps, saveat, adjoint, controller=None):
    return diffrax.diffeqsolve(
        terms,
        solver,
        0.0,
        t1,
        t1 / steps,
        u0,
        saveat=saveat,
        stepsize_controller=diffrax.ConstantStepSize() if controller is None else controller,
        adjoint=adjoint,
        max_steps=64,
    )


def final(terms, solver, u0, t1=2.0, steps=5, adjoint=None):
    adjoint = diffrax.ForwardMode() if adjoint is None else adjoint
    solution = _run(terms, solver, u0, t1, steps, diffrax.SaveAt(t1=True), adjoint)
    assert int(solution.stats["num_steps"]) == steps
    return solution.ys[-1]


# Textbook twins: (t, h, u) ↦ u, written out.


def _euler(field, t, h, u):
    return u + h * field(t, u, None)


def _midpoint(field, t, h, u):
    return u + h * field(t + h / 2, u + h / 2 * field(t, u, None), None)


def _classic(field, t, h, u):
    k1 = field(t, u, None)
    k2 = field(t + h / 2, u + h / 2 * k1, None)
    k3 = field(t + h / 2, u + h / 2 * k2, None)
    k4 = field(t + h, u + h * k3, None)
    return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _whole(t, u, args):
    return _attention(t, u, args) + _feed_forward(t, u, args)


def _strang_twin(step):
    def twin(t, h, u):
        u = step(_feed_forward, t, h / 2, u)
        u = step(_attention, t, h, u)
        return step(_feed_forward, t + h / 2, h / 2, u)

    return twin


TWINS = {
    "rk4": (RK4(), lambda t, h, u: _classic(_whole, t, h, u)),
    "lietrotter": (
        LieTrotter((Euler(), Midpoint())),
        lambda t, h, u: _midpoint(_feed_forward, t, h, _euler(_attention, t, h, u)),
    ),
    "strang": (Strang((Midpoint(), Midpoint())), _strang_twin(_midpoint)),
    "post-ln": (
        LieTrotter((Retract(Euler(), _layer_norm), Retract(RK4(), _layer_norm))),
        lambda t, h, u: _layer_norm(_classic(_feed_forward, t, h, _layer_norm(_euler(_attention, t, h, u)))),
    ),
    "retracted-strang": (
        Retract(Strang((Euler(), Euler())), _layer_norm),
        lambda t, h, u: _layer_norm(_strang_twin(_euler)(t, h, u)),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_textbook_twin(name, u0, relative):
    solver, step = TWINS[name]

    @jax.jit
    def by_hand(u):
        return jax.lax.scan(lambda v, t: (step(t, 0.4, v), None), u, 0.4 * np.arange(5.0))[0]

    expected = by_hand(u0)
    assert relative(final(SPLIT, solver, u0), expected) < 1e-14


def test_three_terms_in_palindromic_order(u0, relative):
    """Strang on (A, B, C): C/2 B/2 A B/2 C/2; Lie–Trotter: A, then B, then C."""
    fields = (*FIELDS, lambda t, u, args: t - u**3)
    terms = diffrax.MultiTerm(*(diffrax.ODETerm(field) for field in fields))

    def step(states, t):
        (lie, strang), h = states, 0.1
        for field in fields:
            lie = _euler(field, t, h, lie)
        for field, start, length in (
            (2, t, h / 2),
            (1, t, h / 2),
            (0, t, h),
            (1, t + h / 2, h / 2),
            (2, t + h / 2, h / 2),
        ):
            strang = _euler(fields[field], start, length, strang)
        return (lie, strang), None

    lie, strang = jax.jit(lambda u: jax.lax.scan(step, (u, u), 0.1 * np.arange(5.0))[0])(u0)
    assert relative(final(terms, LieTrotter((Euler(),) * 3), u0, t1=0.5), lie) < 1e-14
    assert relative(final(terms, Strang((Euler(),) * 3), u0, t1=0.5), strang) < 1e-14


@pytest.mark.parametrize(
    "solver, block",
    [
        (LieTrotter((Euler(), Euler())), lambda a, f, u: (v := u + a(u)) + f(v)),
        (Euler(), lambda a, f, u: u + (a(u) + f(u))),
        (
            Strang((Euler(), Euler())),
            lambda a, f, u: (w := (v := u + 0.5 * f(u)) + a(v)) + 0.5 * f(w),
        ),
        (
            LieTrotter((Retract(Euler(), _layer_norm), Retract(Euler(), _layer_norm))),
            lambda a, f, u: _layer_norm((v := _layer_norm(u + a(u))) + f(v)),
        ),
    ],
    ids=["sequential", "parallel", "macaron", "post-ln"],
)
def test_transformer_blocks_are_steps(solver, block, u0):
    """THEORY §2: a stack of blocks equals the solver at h = 1, with no rounding difference at all."""

    def attention(u):
        return jax.nn.softmax(u @ u.T, axis=1) @ u

    def feed_forward(u):
        return jax.nn.gelu(u * 1.3) - 0.1

    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, u, args: attention(u)), diffrax.ODETerm(lambda t, u, args: feed_forward(u))
    )
    stack = jax.jit(lambda u: jax.lax.fori_loop(0, 6, lambda i, v: block(attention, feed_forward, v), u))
    difference = jnp.max(jnp.abs(final(terms, solver, u0, t1=6.0, steps=6) - stack(u0)))
    assert float(difference) <= 4e-15 * float(jnp.max(jnp.abs(u0)))


@pytest.mark.parametrize("steps", [1, 3, 7, 49, 64])
def test_constant_steps_are_counted_exactly(steps, u0):
    for t1 in (0.3, 6.0):
        solution = _run(
            SPLIT,
            RK4(),
            u0,
            jnp.asarray(t1),
            jnp.asarray(float(steps)),
            diffrax.SaveAt(t1=True),
            diffrax.ForwardMode(),
        )
        assert int(solution.stats["num_steps"]) == steps


def test_float32_stays_float32(u0):
    saveat = diffrax.SaveAt(ts=jnp.asarray([0.3, 0.8], jnp.float32))
    for solver in (
        RK4(),
        Strang((Midpoint(), Tsit5())),
        Retract(LieTrotter((Euler(), Euler())), _layer_norm),
    ):
        solution = eqx.filter_eval_shape(
            lambda u, solver=solver: diffrax.diffeqsolve(
                SPLIT,
                solver,
                jnp.float32(0),
                jnp.float32(1),
                jnp.float32(0.25),
                u,
                saveat=saveat,
                max_steps=4,
            ),
            u0.astype(jnp.float32),
        )
        assert solution.ys.dtype == jnp.float32


# Gradients.


class _Norm(eqx.Module):
    scale: jax.Array

    def __call__(self, u):
        return self.scale * _layer_norm(u)


END, BETWEEN = diffrax.SaveAt(t1=True), diffrax.SaveAt(ts=jnp.array([0.37, 1.0]))


@pytest.mark.parametrize(
    "name, save, adjoints",
    [
        ("rk4", BETWEEN, [diffrax.RecursiveCheckpointAdjoint()]),
        ("retracted-strang", END, [diffrax.RecursiveCheckpointAdjoint(), diffrax.DirectAdjoint()]),
    ],
    ids=["rk4-between", "strang-end"],
)
def test_gradients(name, save, adjoints, u0):
    """With respect to the start, the field's parameter and the retraction's: reverse mode, forward mode and
    central differences agree.
    """
    terms = diffrax.MultiTerm(diffrax.ODETerm(lambda t, u, args: args * jnp.sin(u + t)), diffrax.ODETerm(_feed_forward))

    def loss(parameters, adjoint):
        u, strength, scale = parameters
        solver = RK4() if name == "rk4" else Strang((Midpoint(), Retract(Euler(), _Norm(scale))))
        solution = diffrax.diffeqsolve(
            terms, solver, 0.0, 1.0, 0.25, u, strength, saveat=save, adjoint=adjoint, max_steps=4
        )
        return jnp.sum(jnp.sin(solution.ys))

    parameters = (u0, np.asarray(1.2), np.linspace(0.8, 1.1, 4)[None, :].repeat(5, 0))
    tangents = (np.random.default_rng(1).normal(size=u0.shape), np.asarray(0.7), np.ones((5, 4)))

    def at(step):
        moved = jax.tree.map(lambda p, d: p + step * d, parameters, tangents)
        return loss(moved, diffrax.ForwardMode())

    @jax.jit
    def values():
        ends, slopes = jax.vmap(lambda s: jax.jvp(at, (s,), (1.0,)))(jnp.array([1e-5, -1e-5, 0.0]))
        return (ends[0] - ends[1]) / 2e-5, slopes[2], [jax.grad(loss)(parameters, adjoint) for adjoint in adjoints]

    difference, forward, gradients = values()
    np.testing.assert_allclose(forward, difference, rtol=1e-7)
    for gradient in gradients:
        along = sum(np.vdot(g, d) for g, d in zip(gradient, tangents, strict=True))
        np.testing.assert_allclose(along, difference, rtol=1e-7)
        assert np.any(gradient[2]) == (name != "rk4")


def test_vmap_equals_a_loop(u0):
    batch = np.random.default_rng(1).normal(size=(2, *u0.shape))
    solver = Strang((Midpoint(), Retract(RK4(), _layer_norm)))
    together = jax.vmap(lambda u: final(SPLIT, solver, u))(batch)
    for one, u in zip(np.asarray(together), batch, strict=True):
        np.testing.assert_allclose(one, final(SPLIT, solver, jnp.asarray(u)), rtol=1e-13, atol=1e-14)


def test_sub_solvers_may_be_implicit_or_nested(u0, relative):
    """Kvaerno5 with its own tolerances agrees with Tsit5 as a sub-solver; splittings nest."""
    implicit = Kvaerno5(root_finder=optimistix.Newton(rtol=1e-9, atol=1e-9))
    found = final(SPLIT, LieTrotter((implicit, Euler())), u0, steps=40)
    assert relative(found, final(SPLIT, LieTrotter((Tsit5(), Euler())), u0, steps=40)) < 1e-6
    nested = diffrax.MultiTerm(diffrax.MultiTerm(*SPLIT.terms), diffrax.ODETerm(lambda t, u, args: -u))
    flat = diffrax.MultiTerm(*SPLIT.terms, diffrax.ODETerm(lambda t, u, args: -u))
    solver = LieTrotter((LieTrotter((Euler(), Euler())), Euler()))
    assert relative(final(nested, solver, u0), final(flat, LieTrotter((Euler(),) * 3), u0)) < 1e-15


def test_failure_of_a_sub_solver_is_reported(u0):
    """A root finder that gives up in the first sub-step is the result of the solve, though later ones
    succeed.
    """
    hopeless = Kvaerno5(root_finder=diffrax.VeryChord(rtol=1e-15, atol=1e-300, norm=optimistix.max_norm))
    stiff = diffrax.MultiTerm(diffrax.ODETerm(lambda t, u, args: -1e6 * jnp.sin(u**3)), SPLIT.terms[1])
    solution = diffrax.diffeqsolve(stiff, LieTrotter((hopeless, Euler())), 0.0, 1.0, 0.5, u0, throw=False, max_steps=4)
    assert not bool(diffrax.is_successful(solution.result))


def test_dense_output_is_free_unless_asked_for():
    """The slopes at the ends are dead code in a solve that saves no values between the steps."""
    matrices = (jnp.eye(64), 2.0 * jnp.eye(64))
    one, two = (diffrax.ODETerm(lambda t, u, args, m=m: jnp.tanh(u @ m)) for m in matrices)
    u = jnp.ones((64, 64))

    def products(compiled):
        return compiled.as_text().count(" dot(")

    if products(jax.jit(lambda u: one.vf(0.0, u, None)).lower(u).compile()) != 1:
        pytest.skip("matrix products have another name in this backend's programs")

    def count(terms, solver, saveat):
        return products(_run.lower(terms, solver, u, 1.0, 4, saveat, diffrax.ForwardMode()).compile().compiled)

    assert count(one, RK4(), END) == 4
    assert count(diffrax.MultiTerm(one, two), Strang((Euler(), Euler())), END) == 3
    assert count(one, Retract(Euler(), jnp.tanh), END) == 1
    assert 4 < count(one, RK4(), BETWEEN) <= 6


# Refusals.


def test_pid_is_refused(u0):
    for solver in (RK4(), LieTrotter((Tsit5(), Tsit5())), Retract(Tsit5(), _layer_norm)):
        with pytest.raises(RuntimeError, match="does not provide error estimates"):
            _run(
                SPLIT, solver, u0, 1.0, 4, diffrax.SaveAt(t1=True), diffrax.ForwardMode(),
                diffrax.PIDController(rtol=1e-3, atol=1e-6),
            )  # fmt: skip


def test_half_solver_makes_rk4_adaptive(u0, relative):
    solution = _run(
        SPLIT, diffrax.HalfSolver(RK4()), u0, 1.0, 4, diffrax.SaveAt(t1=True), diffrax.ForwardMode(),
        diffrax.PIDController(rtol=1e-9, atol=1e-9),
    )  # fmt: skip
    assert relative(solution.ys[-1], final(SPLIT, RK4(), u0, t1=1.0, steps=64)) < 1e-8


def test_a_splitting_wants_a_multiterm(u0):
    with pytest.raises(TypeError, match=r"LieTrotter: terms is ODETerm\(function\); it must be diffrax.MultiTerm"):
        final(diffrax.ODETerm(_attention), LieTrotter((Euler(), Euler())), u0)


def test_bad_constructions():
    for splitting in (LieTrotter, Strang):
        with pytest.raises(ValueError, match="solvers is empty"):
            splitting(())
        with pytest.raises(TypeError, match=r"solvers\[1\] is the class Euler; call it to make one: Euler\(\)"):
            splitting((Euler(), Euler))
        with pytest.raises(TypeError, match=r"solvers\[0\] must be a diffrax solver"):
            splitting(("euler", Euler()))
        with pytest.raises(TypeError, match="solvers must be a tuple with one solver per term"):
            splitting(Euler())
        with pytest.raises(ValueError, match=r"solvers\[0\] is Kvaerno5 without tolerances"):
            splitting((Kvaerno5(), Euler()))
        assert splitting([Euler(), RK4()]).solvers == (Euler(), RK4())
    with pytest.raises(TypeError, match="retraction must be a function of the state"):
        Retract(Euler(), None)
    with pytest.raises(TypeError, match="solver is the class Euler"):
        Retract(Euler, _layer_norm)
    with pytest.raises(ValueError, match="solver is Kvaerno5 without tolerances"):
        Retract(Kvaerno5(), _layer_norm)


def test_a_retraction_must_keep_shape_and_type(u0):
    for retraction in (lambda u: u[:-1], lambda u: u.astype(jnp.float32), lambda u: (u,)):
        with pytest.raises(ValueError, match="retraction changed the state"):
            final(SPLIT, Retract(Euler(), retraction), u0)
