"""Every counterexample contradicts its claim by its arrays alone, recomputed here by NumPy."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.studies.claims import _c1_continuum as c1
from pdejax.studies.claims import _c2_residual as c2
from pdejax.studies.claims import _c3_step as c3
from pdejax.studies.claims import _c4_energy as c4
from pdejax.studies.claims import _c5_stochastic as c5
from pdejax.studies.claims import _c6_fidelity as c6
from pdejax.studies.claims import _c7_diffusivity as c7
from pdejax.studies.claims import _c8_estimate as c8
from pdejax.studies.claims import _c9_signs as c9
from pdejax.studies.claims import _c10_compression as c10
from pdejax.studies.claims import _c11_boundary as c11
from pdejax.studies.claims import _c12_lipschitz as c12
from pdejax.studies.claims import _c13_decay as c13
from pdejax.studies.claims import _c14_attention as c14
from pdejax.studies.claims import _c17_activations as c17
from pdejax.terms import FeedForward


def arrays(example):
    assert example.description and all(isinstance(a, np.ndarray) for a in example.arrays.values())
    return example.arrays


def test_c1_products_of_independent_layers_keep_their_spread():
    a = arrays(c1.smallest(0))
    for count, ends in zip(a["layers"], a["ends"], strict=True):
        u = np.ones(len(a["signs"]))
        for sign in a["signs"].T[:count]:
            u = u + sign * u / math.sqrt(count)
        np.testing.assert_allclose(u, ends, rtol=1e-12)
    logs = np.log(a["ends"]).std(axis=1)
    assert logs[-1] > 0.7 * logs[0] > 0.5  # the limit of its logarithm has deviation 1


def test_c2_a_sequential_block_is_no_euler_step():
    a = arrays(c2.smallest())
    first = a["u"] + a["a"] * a["u"]
    assert first + a["b"] * first == a["block"] != a["euler"] == a["u"] * (1 + a["a"] + a["b"])


def test_c3_a_step_that_v1_21_allows_blows_up():
    a = arrays(c3.smallest())
    np.testing.assert_allclose(a["u"][1:], a["u"][:-1] + a["step"] * -10 * a["u"][:-1])
    assert a["left_side"] <= 1 and abs(a["u"][-1, 0, 0]) > 1e10


def test_c4_the_energy_grows_though_gamma_exceeds_the_growth():
    a = arrays(c4.smallest())
    gamma, growth = a["gamma"], a["growth"]
    sigma = a["u"][:, 0, 0]
    # The field at every sample against differences of the trajectory.
    rate = growth * sigma - gamma * np.sign(sigma)
    np.testing.assert_allclose(np.gradient(sigma, a["t"], edge_order=2), rate, rtol=0.2)
    np.testing.assert_allclose(sigma, gamma / growth + (sigma[0] - gamma / growth) * np.exp(growth * a["t"]))
    assert gamma > growth and sigma[-1] > sigma[0]
    assert np.ptp(a["constant"]) == 0


def test_c5_a_row_stochastic_matrix_enlarges_a_vector():
    a = arrays(c5.smallest())
    assert np.all(a["kernel"] >= 0) and np.all(a["kernel"].sum(1) == 1)
    assert np.linalg.norm(a["kernel"] @ a["u"]) == pytest.approx(math.sqrt(2) * np.linalg.norm(a["u"]))
    symmetric = (a["kernel"] + a["kernel"].T) / 2 - np.eye(2)
    assert np.linalg.eigvalsh(symmetric)[-1] == pytest.approx((math.sqrt(2) - 1) / 2)


@pytest.mark.parametrize("example", [c6.smallest, c13.smallest])
def test_c6_c13_a_rotation_loses_its_fidelity(example):
    a = arrays(example())
    u, t = a["u"][:, 0], a["t"]
    gamma = float(a.get("gamma", 0.0))  # above the Lipschitz constant 1 of uJ: what Theorem 3.3 asks for
    assert example is c6.smallest or gamma > 1
    sizes = np.linalg.norm(u, axis=1)
    np.testing.assert_allclose(sizes, np.exp(-gamma * t))
    turned = u / sizes[:, None]
    field = turned @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(np.gradient(turned, t, axis=0)[1:-1], field[1:-1], atol=0.02)
    rho = turned @ u[0]
    ratio = np.linalg.norm(u - u[0], axis=1)
    assert rho[-1] == pytest.approx(-1) and rho[-1] < (1 - ratio[-1]) / (1 + ratio[-1])


def test_c7_the_trace_is_negative():
    a = arrays(c7.smallest())

    def network(u):
        z = u @ a["w1"]
        return 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) @ a["w2"]

    slope = (network(a["u"] + 1e-6) - network(a["u"] - 1e-6)) / 2e-6
    assert slope[0, 0] == pytest.approx(-a["slope_of_gelu"], rel=1e-6)
    term = FeedForward(1, 1, key=jax.random.key(0))
    term = eqx.tree_at(lambda f: (f.w1, f.w2), term, (jnp.asarray(a["w1"]), jnp.asarray(a["w2"])))
    assert term.jacobian_trace(jnp.asarray(a["u"]))[0] == pytest.approx(slope[0, 0], rel=1e-6)


def test_c8_independent_bits_are_given_information():
    a = arrays(c8.smallest())
    joint = a["joint"]
    product = np.outer(joint.sum(1), joint.sum(0))
    assert np.sum(joint * np.log(joint / product)) == 0
    np.testing.assert_allclose(a["conditional"].sum(1), 1)
    given = np.sum(joint * np.log(a["conditional"])) - np.sum(product * np.log(a["marginal"])[None])
    assert given == pytest.approx(float(a["estimate"])) and given > 0.5


def test_c9_one_weight_goes_three_ways():
    a = arrays(c9.smallest())
    eta, decay, beta = a["rates"]
    theta, slope = a["theta"], a["information_gradient"]
    h = 1e-6
    assert (0.5 * np.log1p((theta + h) ** 2) - 0.5 * np.log1p((theta - h) ** 2)) / (2 * h) == pytest.approx(
        float(slope)
    )
    np.testing.assert_allclose(a["after_decay"], theta + np.array([-decay, decay, -eta * decay]) * theta)
    np.testing.assert_allclose(a["after_information"], theta + np.array([-beta, -beta, eta * beta]) * slope)
    assert a["after_decay"][1] > theta and a["after_information"][2] > theta


def test_c10_a_shrinking_field_keeps_its_information():
    a = arrays(c10.smallest())
    own = a["prior"] + a["noise"] ** 2 * np.eye(2)
    for p, stated in zip(a["propagators"], a["information"], strict=True):
        both = a["prior"] @ p.T
        # I = h(X) − h(X | u): the Schur complement.
        given = own - both @ np.linalg.inv(p @ a["prior"] @ p.T) @ both.T
        assert 0.5 * np.log(np.linalg.det(own) / np.linalg.det(given)) == pytest.approx(float(stated), rel=1e-10)
    assert np.ptp(a["information"]) < 1e-10


def test_c11_refinement_helps_at_every_fixed_depth_and_not_down_to_zero():
    with jax.enable_x64(True):
        a = arrays(c11.smallest())
        fixed = [c11.worst_error(n, 1.0, 0.0, "incompatible", 0.01)[0] for n in (32, 64)]
    assert fixed == pytest.approx([1.25e-3, 3.21e-4], rel=0.01)  # a quarter: order 2
    errors = [np.max(np.abs(a[f"numerical{end}"] - a[f"exact{end}"])) for end in ("", "_64")]
    assert errors[1] > 0.9 * errors[0] > 0.05
    # Away from the other end the field is that of a half line, erf(x/√4t).
    x = (np.arange(64) + 1) / 65
    half = np.vectorize(math.erf)(x / math.sqrt(4 * a["depth_64"]))
    np.testing.assert_allclose(a["exact_64"][:16], half[:16], atol=1e-3)
    assert np.all(a["u0"] == 1)


def test_c12_the_slope_has_no_bound():
    a = arrays(c12.smallest())

    def first(u):
        logits = u[0] * u[:, 0]
        weights = np.exp(logits - logits.max())
        return weights @ u[:, 0] / weights.sum()

    for tokens, slope in zip(a["tokens"][:3], a["slope"][:3], strict=True):
        h = np.array([[1e-6], [0.0]])
        assert (first(tokens + h) - first(tokens - h)) / 2e-6 == pytest.approx(float(slope), rel=1e-6)
    assert a["slope"][-1] > 1000


def test_c14_opposite_preferences_look_alike():
    a = arrays(c14.smallest())
    rows = np.exp(a["logits"])
    np.testing.assert_allclose(a["rows"], rows / rows.sum(1, keepdims=True))
    cosine = rows[0] @ rows[1] / np.prod(np.linalg.norm(rows, axis=1))
    assert cosine == pytest.approx(float(a["cosine"])) and cosine > 0.98
    assert np.argmax(rows[0]) != np.argmax(rows[1])


def test_c17_the_slopes_of_relu_differ():
    a = arrays(c17.smallest())
    np.testing.assert_allclose(np.diff(a["sigma"]) / np.diff(a["z"]), [0, 1])
