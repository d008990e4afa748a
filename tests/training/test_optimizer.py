"""Schedules against their formulas, optimizers against their first steps by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdejax.training import make_optimizer
from pdejax.training._step import make_schedule


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda s: 0.1),
        ("cosine", lambda s: 0.1 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * s / 90)))),
        ("linear", lambda s: 0.1 * (1 - 0.8 * s / 90)),
        ("inverse_sqrt", lambda s: 0.1 * math.sqrt(10 / (10 + s))),
    ],
)
def test_schedules(name, formula):
    schedule = make_schedule(name, 0.1, 100, warmup=10, final=0.2)
    np.testing.assert_allclose(
        [schedule(10 + s) for s in range(0, 90, 7)], [formula(s) for s in range(0, 90, 7)], rtol=1e-5
    )


def test_warmup_rises_to_the_rate_and_never_starts_at_zero():
    rates = np.array([make_schedule("constant", 0.1, 100, warmup=4)(s) for s in range(6)], float)
    np.testing.assert_allclose(rates, 0.1 * np.array([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]), rtol=1e-6)


PARAMS = {"layers": {"kernel": jnp.array([[2.0, -3.0]]), "bias": jnp.array([4.0])}, "scale": jnp.array([5.0])}
GRADIENTS = jax.tree.map(jnp.ones_like, PARAMS)


def first_update(optimizer):
    return optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)[0]


def test_adam_steps_by_the_rate():
    """The first step of Adam is −η sign(g), but for ε."""
    for leaf in jax.tree.leaves(first_update(make_optimizer("adam", learning_rate=0.1))):
        np.testing.assert_allclose(leaf, -0.1, rtol=1e-6)


def test_decay_is_of_matrices_only():
    update = first_update(make_optimizer("adamw", learning_rate=0.1, weight_decay=0.5))
    np.testing.assert_allclose(update["layers"]["kernel"], [[-0.1 - 0.05 * 2, -0.1 + 0.05 * 3]], rtol=1e-6)
    np.testing.assert_allclose(update["layers"]["bias"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(update["scale"], -0.1, rtol=1e-6)


def test_clipping_scales_to_the_norm():
    update = first_update(make_optimizer("sgd", learning_rate=1.0, clip=0.5))
    np.testing.assert_allclose(optax.tree.norm(update), 0.5, rtol=1e-6)
    free = first_update(make_optimizer("sgd", learning_rate=1.0))
    np.testing.assert_allclose(optax.tree.norm(free), 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lion", "learning_rate": 0.1}, r"name='lion'.*adamw"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": 0.1, "weight_decay": 0.1}, "use 'adamw'"),
        ({"name": "adamw", "learning_rate": 0.1, "weight_decay": -1}, "weight_decay=-1"),
        ({"learning_rate": 0.1, "clip": 0.0}, "clip=0.0"),
        ({"learning_rate": 0.1, "b2": 1.0}, "make_optimizer: b2=1.0 must be one finite number ≥ 0 and < 1"),
    ],
)
def test_bad_optimizers(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sawtooth", 0.1, 10), "schedule='sawtooth'"),
        (("constant", 0.0, 10), "learning_rate=0.0"),
        (("constant", 0.1, 0), "steps=0"),
        (("constant", 0.1, 10, 10), "warmup=10 must be less"),
        (("cosine", 0.1, 10, 0, 2.0), "final=2.0"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)
