"""A field that must not be evaluated, and what the tables of bad input are made with."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.terms import AbstractTerm

N, D = 5, 4
KEY = jax.random.key(0)
U = jnp.asarray(np.random.default_rng(0).standard_normal((N, D)))


class Untouchable(AbstractTerm):
    """A term that must not be evaluated."""

    weight: jax.Array = eqx.field(default_factory=lambda: jnp.ones(()))

    def __call__(self, t, u, args):
        raise AssertionError("the field was evaluated before the input was checked")

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        if d != D:
            raise ValueError(f"Untouchable was built for width {D}, but the field has {d} features.")


ONE = pj.MasterEquation(reaction=Untouchable())
TWO = pj.MasterEquation(interaction=Untouchable(), reaction=Untouchable())


def layered(t1=1.5):
    return pj.DepthVarying.from_layers([ONE, ONE, ONE], t1)


def attention(dim=D, **options):
    return pj.Attention(dim, options.pop("heads", 2), key=KEY, **options)


def feed_forward(dim=D, **options):
    return pj.FeedForward(dim, 3, key=KEY, **options)


def run(equation=ONE, u0=U, **options):
    if not {"steps", "rtol", "atol"} & set(options):
        options["steps"] = 4
    of_simulate = {"mask", "save", "reduce", "blowup", "progress", "throw"} & set(options)
    called = {name: options.pop(name) for name in of_simulate}
    return pj.simulate(pj.Discretization(equation, **{"t1": 1.0} | options), u0, **called)


def with_term(name, term, u0=U):
    return run(pj.MasterEquation(**{name: term}), u0)


def check(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    # Not one of JAX's own, that only happens to be of the right kind.
    frames = [entry.path for entry in caught.traceback]
    assert "pdejax" in str(frames[-1]) or "solvers" in str(frames[-1]) or "test_bad_" in str(frames[-1]), frames
