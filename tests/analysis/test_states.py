"""What the analyses take and refuse; null models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis._states import hidden_states, paired_states, shuffle_features, shuffle_tokens

U = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
MASK = jnp.arange(5)[None, :] < jnp.array([5, 3, 1, 4])[:, None]


def solve(u):
    equation = pj.MasterEquation(stabilization=pj.LinearDamping(1.0))
    return pj.simulate(pj.Discretization(equation, "euler", t1=2.0, steps=2), u)


def test_one_sequence_a_batch_and_trajectories_are_taken():
    one = hidden_states("f", "a", U[:, 0])
    assert one.u.shape == (3, 1, 5, 2) and not one.batched and bool(jnp.all(one.mask))
    many = hidden_states("f", "a", U, MASK)
    assert many.batched and many.u is U and bool(jnp.all(many.mask == MASK))
    trajectory = solve(U[0, 0])
    np.testing.assert_array_equal(hidden_states("f", "a", trajectory).u[:, 0], trajectory.us)
    batch = jax.vmap(solve)(U[0])
    np.testing.assert_array_equal(hidden_states("f", "a", batch).u, jnp.moveaxis(batch.us, 0, 1))
    assert bool(jnp.all(hidden_states("f", "a", U, MASK[1]).mask == MASK[1][None]))


@pytest.mark.parametrize(
    ("value", "mask", "error", "words"),
    [
        (jnp.ones((2, 3)), None, ValueError, "(2, 3)"),
        (jnp.ones((0, 2, 3)), None, ValueError, "at least one layer"),
        (jnp.ones((2, 3, 4), int), None, TypeError, "int"),
        (U, jnp.ones((4, 4), bool), ValueError, "(4, 4)"),
        (U, jnp.ones((4, 5)), TypeError, "boolean"),
        (U, MASK & (jnp.arange(4) != 2)[:, None], ValueError, "sequence 2"),
        (U.at[1, 1, 2, 0].set(jnp.nan), MASK, ValueError, "layer 1"),
    ],
)
def test_what_is_refused(value, mask, error, words):
    with pytest.raises(error) as raised:
        hidden_states("f", "a", value, mask)
    assert words in str(raised.value) and str(raised.value).startswith("f: ")


def test_padding_may_hold_anything_and_tracers_are_not_looked_at():
    hidden_states("f", "a", U.at[0, 1, 3].set(jnp.nan), MASK)
    found = jax.jit(lambda u: hidden_states("f", "a", u).u)(U.at[0].set(jnp.nan))
    assert found.shape == U.shape


def test_trajectories_that_ended_early_are_refused():
    whole = solve(U[0, 0])
    for name, value, words in (("complete", False, "max_steps"), ("diverged", True, "diverged")):
        broken = eqx.tree_at(lambda t, name=name: getattr(t, name), whole, jnp.asarray(value))
        with pytest.raises(ValueError, match=words):
            hidden_states("f", "a", broken)


def test_pairs_must_match_in_all_but_features():
    paired_states("f", ("a", "b"), U, U[..., :1], MASK)
    with pytest.raises(ValueError, match="Depth differs"):
        paired_states("f", ("a", "b"), U, U[:2], MASK)
    with pytest.raises(ValueError, match="b \\(3, 5, 2\\)"):
        paired_states("f", ("a", "b"), U, U[:, 0])


def test_shuffled_tokens_are_the_same_set_in_another_order():
    u = jnp.arange(3 * 4 * 50 * 1.0).reshape(3, 4, 50, 1)
    mask = jnp.arange(50)[None, :] < jnp.array([50, 30, 1, 40])[:, None]
    # Padding need not be at the end.
    mask = mask.at[1].set(mask[1][::-1])
    found = shuffle_tokens(u, mask, jax.random.key(1))
    for b in range(4):
        real = np.asarray(mask[b])
        np.testing.assert_array_equal(found[:, b, ~real], u[:, b, ~real])
        np.testing.assert_array_equal(np.sort(found[:, b, real], axis=1), u[:, b, real])
        assert real.sum() == 1 or np.any(found[:, b, real] != u[:, b, real])
    # The same order at all layers.
    np.testing.assert_array_equal(found[1] - found[0], u[1] - u[0])


def test_shuffled_features_keep_rotation_invariants():
    found = shuffle_features(U, jax.random.key(3))
    np.testing.assert_allclose(jnp.sum(found**2, -1), jnp.sum(U**2, -1))


@pytest.mark.slow
def test_calls_without_a_key_are_those_of_key_0():
    """As users type them: `lyapunov_exponents(d, u0, k=…)`, `spectral_similarity(a, b)`, `token_clustering(u)`."""
    u, other = U[:, :2, :3], U[:, 2:, :3]
    key = jax.random.key(0)
    damped = pj.Discretization(pj.MasterEquation(stabilization=pj.LinearDamping(0.5)), "rk4", t1=2.0, steps=32)
    for call in (
        lambda **k: pj.analysis.spectral_similarity(u, other, resamples=20, **k),
        lambda **k: pj.analysis.token_clustering(u, resamples=20, **k),
        lambda **k: pj.analysis.lyapunov_exponents(damped, u[0, 0], k=2, **k),
    ):
        ours, theirs = call(), call(key=key)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
    # RK4 at h = 1/16 errs by h⁴.
    np.testing.assert_allclose(ours.exponents.value, -0.5, atol=1e-6)
