"""The bottleneck flow: its steps, its closed forms, and what each printed sign does (claim C9)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdejax.training._bottleneck import add_information, bottleneck_flow, signed_rates, takes_information

ETA, LAM, BETA, DT = 0.3, 0.2, 0.5, 0.1
SIGNS = ("v1 (14)", "v1 (3)", "algorithm 1")


def right_side(signs, theta, slope, compression):
    """θ' as printed, written out."""
    if signs == "v1 (14)":
        return -ETA * slope - LAM * theta - BETA * compression
    if signs == "v1 (3)":
        return -ETA * slope + LAM * theta - BETA * compression
    return -ETA * (slope + LAM * theta - BETA * compression)


def run(flow, theta, steps, slope=None, compression=None):
    """The parameter after every step; `slope` and `compression` are ∇L and ∇Ĩ as functions of it."""

    def zero(theta):
        return jnp.zeros_like(theta)

    slope, compression = slope or zero, compression or zero

    def step(carry, _):
        theta, state = carry
        updates, state = flow.update(slope(theta), state, theta, information_gradient=compression(theta))
        theta = optax.apply_updates(theta, updates)
        return (theta, state), theta

    theta = jnp.asarray(theta, float)
    _, path = jax.lax.scan(step, (theta, flow.init(theta)), length=steps)
    return np.asarray(jnp.concatenate([theta[None], path]))


@pytest.mark.parametrize("signs", SIGNS)
def test_a_step_is_the_equation_as_printed(signs):
    rng = np.random.default_rng(0)
    tree = [
        {"w": jnp.asarray(rng.standard_normal((2, 3))), "b": (jnp.asarray(rng.standard_normal(2)), None)}
        for _ in range(3)
    ]
    theta, slope, compression = tree
    flow = bottleneck_flow(ETA, weight_decay=LAM, beta=BETA, signs=signs, dt=DT)
    updates, _ = jax.jit(flow.update)(slope, flow.init(theta), theta, information_gradient=compression)
    expected = jax.tree.map(lambda t, s, c: DT * right_side(signs, t, s, c), theta, slope, compression)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)
    assert jax.tree.structure(updates) == jax.tree.structure(theta)


@pytest.mark.parametrize(
    ("signs", "factor"), [("v1 (14)", 1 - DT * LAM), ("v1 (3)", 1 + DT * LAM), ("algorithm 1", 1 - DT * ETA * LAM)]
)
def test_decay_alone_multiplies_by_a_constant(signs, factor):
    """L = 0, β = 0: under (3) the weights grow, e^{λt} in the limit, under (14) and line 33 they fall."""
    flow = bottleneck_flow(ETA, weight_decay=LAM, signs=signs, dt=DT)
    path = run(flow, [1.0, -2.0], 50)
    np.testing.assert_allclose(path, np.array([[1.0, -2.0]]) * factor ** np.arange(51)[:, None], rtol=1e-12)
    assert (np.linalg.norm(path[-1]) > np.linalg.norm(path[0])) == (signs == "v1 (3)")


@pytest.mark.parametrize("signs", SIGNS)
def test_quadratic_loss_has_its_closed_form(signs):
    """L = h(θ − θ*)²/2: θ_n is a geometric sequence about ηhθ*/(ηh ± λ). (3) moves the minimum outwards."""
    h, best = np.array([2.0, 5.0]), np.array([1.0, -1.0])
    flow = bottleneck_flow(ETA, weight_decay=LAM, signs=signs, dt=DT)
    path = run(flow, [0.3, 0.2], 400, slope=lambda theta: jnp.asarray(h) * (theta - jnp.asarray(best)))
    lam = {"v1 (14)": LAM, "v1 (3)": -LAM, "algorithm 1": ETA * LAM}[signs]
    fixed, factor = ETA * h * best / (ETA * h + lam), 1 - DT * (ETA * h + lam)
    expected = fixed + (np.array([0.3, 0.2]) - fixed) * factor ** np.arange(401)[:, None]
    np.testing.assert_allclose(path, expected, rtol=1e-11, atol=1e-13)
    outwards = np.linalg.norm(path[-1]) > np.linalg.norm(best)
    assert outwards == (signs == "v1 (3)")


def test_information_of_a_gaussian_channel_follows_its_ode():
    """T = θX + σξ, I = ½ln(1 + θ²/σ²): under θ' = ∓βI' the quantity σ²lnθ + θ²/2 is linear in time.

    (14) compresses to nothing, line 33 expands without end; Euler meets the implicit solution to first order.
    """
    noise, depth = 0.5, 4.0

    def information(theta):
        return 0.5 * jnp.sum(jnp.log1p(theta**2 / noise**2))

    def invariant(theta):
        return noise**2 * np.log(theta) + theta**2 / 2

    ends = {}
    for signs, rate in (("v1 (14)", -BETA), ("algorithm 1", ETA * BETA)):
        errors = []
        for steps in (160, 320, 640):
            flow = bottleneck_flow(ETA, beta=BETA, signs=signs, dt=depth / steps)
            path = run(flow, [1.0], steps, compression=jax.grad(information))[:, 0]
            gone = invariant(path) - invariant(1.0)
            errors.append(np.abs(gone - rate * depth * np.arange(steps + 1) / steps).max())
            values = 0.5 * np.log1p(path**2 / noise**2)
            assert np.all(np.diff(values) < 0 if signs == "v1 (14)" else np.diff(values) > 0)
        np.testing.assert_allclose(np.array(errors[:-1]) / np.array(errors[1:]), 2.0, atol=0.1)
        assert errors[-1] < 0.01
        ends[signs] = values[-1]
    assert ends["v1 (14)"] < float(information(jnp.ones(1))) < ends["algorithm 1"]


def test_euler_in_training_time_is_of_first_order():
    """The error against the closed form halves with dt."""
    errors = []
    for steps in (40, 80, 160):
        path = run(bottleneck_flow(ETA, weight_decay=LAM, dt=2.0 / steps), [1.0], steps)
        errors.append(abs(path[-1, 0] - math.exp(-LAM * 2.0)))
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    np.testing.assert_allclose(ratios, 2.0, rtol=0.02)


def test_v1_3_has_a_threshold_beyond_which_the_weights_run_away():
    """θ' = θ(λ − β/(σ² + θ²)): its rest point θ² = β/λ − σ² is repelling; (14) has none but 0."""
    noise = 0.5
    rest = math.sqrt(BETA / LAM - noise**2)

    def slope(theta):
        return theta / (noise**2 + theta**2)

    expanding = bottleneck_flow(1.0, weight_decay=LAM, beta=BETA, signs="v1 (3)", dt=DT)
    inside, outside = (run(expanding, [f * rest], 400, compression=slope)[:, 0] for f in (0.95, 1.05))
    assert np.all(np.diff(outside) > 0) and outside[-1] > 10 * rest
    assert inside[-1] < 1e-3
    np.testing.assert_allclose(run(expanding, [rest], 3, compression=slope)[:, 0], rest, rtol=1e-12)
    compressing = bottleneck_flow(1.0, weight_decay=LAM, beta=BETA, dt=DT)
    assert run(compressing, [5 * rest], 1000, compression=slope)[-1, 0] < 1e-3


def test_before_another_optimizer_the_sum_is_its_gradient():
    theta, slope, compression = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1]), jnp.array([0.5, 0.7])
    for signs in SIGNS:
        flow = bottleneck_flow(ETA, weight_decay=LAM, beta=BETA, signs=signs, optimizer=optax.sgd(DT))
        plain = bottleneck_flow(ETA, weight_decay=LAM, beta=BETA, signs=signs, dt=DT)
        a, _ = flow.update(slope, flow.init(theta), theta, information_gradient=compression)
        b, _ = plain.update(slope, plain.init(theta), theta, information_gradient=compression)
        np.testing.assert_allclose(a, b, rtol=1e-14)
        flow = bottleneck_flow(ETA, weight_decay=LAM, beta=BETA, signs=signs, optimizer=optax.adam(DT))
        a, _ = flow.update(slope, flow.init(theta), theta, information_gradient=compression)
        # Adam's first step has the size of its learning rate, whatever the rates of the flow.
        np.testing.assert_allclose(a, DT * jnp.sign(right_side(signs, theta, slope, compression)), rtol=1e-5)


def test_a_schedule_scales_the_loss_only_except_in_line_33():
    theta, slope, compression = jnp.array([1.0]), jnp.array([0.3]), jnp.array([0.5])
    for signs in SIGNS:
        flow = bottleneck_flow(lambda count: ETA / (1 + count), weight_decay=LAM, beta=BETA, signs=signs)
        state = flow.init(theta)
        for n in range(3):
            updates, state = flow.update(slope, state, theta, information_gradient=compression)
            eta = ETA / (1 + n)
            if signs == "algorithm 1":
                expected = -eta * (0.3 + LAM - BETA * 0.5)
            else:
                expected = -eta * 0.3 + (LAM if signs == "v1 (3)" else -LAM) - BETA * 0.5
            np.testing.assert_allclose(updates, [expected], rtol=1e-12)


def test_single_precision_stays_single():
    theta = jnp.ones(3, jnp.float32)
    for optimizer in (None, optax.adam(0.1)):
        flow = bottleneck_flow(ETA, weight_decay=LAM, beta=BETA, optimizer=optimizer)
        updates, _ = flow.update(theta, flow.init(theta), theta, information_gradient=theta)
        assert updates.dtype == jnp.float32


def test_whether_a_chain_takes_information_is_seen_in_its_state():
    theta = {"w": jnp.ones(2)}
    assert takes_information(bottleneck_flow(0.1).init(theta))
    assert takes_information(bottleneck_flow(0.1, optimizer=optax.adam(0.1)).init(theta))
    assert takes_information(optax.chain(add_information(0.1), optax.adam(0.1)).init(theta))
    assert not takes_information(optax.adam(0.1).init(theta))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"learning_rate": True}, "learning_rate=True"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"beta": math.inf}, "beta=inf"),
        ({"signs": "v1 (4)"}, "signs='v1 \\(4\\)'"),
        ({"dt": 0.0}, "dt=0.0"),
        ({"dt": 0.5, "optimizer": optax.sgd(1.0)}, "dt=0.5"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        bottleneck_flow(**{"learning_rate": 0.1, **options})


def test_missing_pieces_are_named():
    theta = jnp.ones(2)
    flow = bottleneck_flow(0.1, beta=1.0)
    with pytest.raises(ValueError, match="needs params"):
        flow.update(theta, flow.init(theta))
    with pytest.raises(ValueError, match="information_gradient"):
        flow.update(theta, flow.init(theta), theta)
    with pytest.raises(ValueError, match="tree like"):
        flow.update(theta, flow.init(theta), theta, information_gradient={"w": theta})
    with pytest.raises(ValueError, match="beta=nan"):
        add_information(math.nan)
    quiet = bottleneck_flow(0.1, weight_decay=0.5)  # β = 0 needs none
    np.testing.assert_allclose(quiet.update(theta, quiet.init(theta), theta)[0], -0.1 * theta - 0.5 * theta)


def test_the_rates_may_be_traced():
    theta, slope, compression = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1]), jnp.array([0.5, 0.7])
    make = optax.inject_hyperparams(bottleneck_flow, static_args=("signs", "dt", "optimizer"))
    for signs in SIGNS:
        flow = make(learning_rate=ETA, weight_decay=LAM, beta=BETA, signs=signs, dt=DT)
        state = flow.init(theta)
        assert takes_information(state)
        update = jax.jit(flow.update)
        for factor in (1.0, 0.0):
            rates = {**state.hyperparams, "beta": factor * state.hyperparams["beta"]}
            found, _ = update(slope, state._replace(hyperparams=rates), theta, information_gradient=compression)
            np.testing.assert_allclose(found, DT * right_side(signs, theta, slope, factor * compression), rtol=1e-12)
        eta, decay, ascent = signed_rates(signs, ETA, LAM, BETA)
        expected = -eta * slope - decay * theta - ascent * compression
        np.testing.assert_allclose(right_side(signs, theta, slope, compression), expected, rtol=1e-12)
