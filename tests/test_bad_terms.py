"""Bad input of the terms and of what is made of them: an error that names the argument, what it was and what is allowed."""

import jax.numpy as jnp
import numpy as np
import pytest
from untouchable import KEY, ONE, D, N, attention, check, feed_forward, layered, with_term

import pdejax as pj

pytestmark = pytest.mark.bad_input

BACKWARD = jnp.array([[0.1, 1.0], [1.0, 0.1]])

TERMS = {
    "heads": (lambda: attention(heads=3), ValueError, r"heads=3 does not divide dim=4. Choose heads from \[1, 2, 4\]"),
    "no heads": (lambda: attention(heads=0), ValueError, "heads=0 must be an integer of at least 1"),
    "head_dim": (lambda: attention(head_dim=0), ValueError, "head_dim=0 must be an integer of at least 1"),
    "kernel": (lambda: attention(kernel="cosine"), ValueError, "kernel='cosine' must be one of .*'l2'"),
    "causal kernel": (
        lambda: attention(kernel="linear", causal=True),
        ValueError,
        "causal needs a kernel 'softmax' or 'l2', not kernel='linear'",
    ),
    "rotary": (lambda: attention(heads=4, rotary=10.0), ValueError, "rotary.* dk=1 must be even"),
    "grid and weights": (
        lambda: attention(grid=pj.Grid(N), weights=jnp.ones(N)),
        ValueError,
        "give grid or weights, not both",
    ),
    "weights": (lambda: attention(weights=jnp.array([1.0, 0.0])), ValueError, "weights must all be positive"),
    "weights rank": (lambda: attention(weights=jnp.ones((2, 2))), ValueError, r"weights=an array of shape \(2, 2\)"),
    "strength": (lambda: attention(strength=jnp.ones(3)), ValueError, "strength=.* must be one finite number"),
    "strength nan": (
        lambda: feed_forward(strength=np.nan),
        ValueError,
        "strength=nan must be a real number .*NaN is none",
    ),
    "implementation": (lambda: attention(implementation="flash"), ValueError, "implementation='flash' must be one of"),
    "activation": (lambda: feed_forward(activation="mish"), ValueError, "activation='mish' must be one of"),
    "sizes": (lambda: pj.FeedForward(D, 0, key=KEY), ValueError, "hidden=0 must be an integer of at least 1"),
    "source": (
        lambda: with_term("reaction", feed_forward(source=lambda x, t: x)),
        ValueError,
        r"source returned shape \(5,\) for a field of shape \(5, 4\)",
    ),
    "negative diffusivity": (lambda: pj.Diffusion(pj.Grid(N), -0.1), ValueError, "diffusivity=-0.1 has a negative"),
    "negative entry": (lambda: pj.Diffusion(pj.Grid(N), jnp.array([1.0, -1.0])), ValueError, "has a negative entry"),
    "not semidefinite": (
        lambda: pj.Diffusion(pj.Grid(N), BACKWARD),
        ValueError,
        "symmetric part of the diffusivity matrix has eigenvalue -0.9 < 0",
    ),
    "nan diffusivity": (lambda: pj.Diffusion(pj.Grid(N), np.nan), ValueError, "diffusivity=nan must be .*NaN is none"),
    "diffusivity shape": (lambda: pj.Diffusion(pj.Grid(N), jnp.ones((2, 3))), ValueError, r"has shape \(2, 3\)"),
    "form": (
        lambda: pj.EffectiveDiffusion(pj.Grid(N), attention(), feed_forward(), jnp.ones((N, D)), form="square"),
        ValueError,
        "form='square' must be one of",
    ),
    "gamma": (lambda: pj.SpatialNorm(-1.0), ValueError, "SpatialNorm: gamma=-1.0 must be finite and not negative"),
    "gamma nan": (lambda: pj.LinearDamping(np.nan), ValueError, "LinearDamping: gamma=nan must be .*NaN is none"),
    "gamma shape": (lambda: pj.LayerNormRelaxation(D, jnp.ones((2, 2))), ValueError, r"gamma has shape \(2, 2\)"),
    "eps": (lambda: pj.SpatialNorm(1.0, eps=0.0), ValueError, "eps=0.0 must be one finite number ≥ 1e-24"),
    "exchange": (lambda: pj.Exchange(0, key=KEY), ValueError, "Exchange: dim=0 must be an integer of at least 1"),
    "no term": (lambda: pj.MasterEquation(), ValueError, "no term given; pass at least one"),
    "not a term": (
        lambda: pj.MasterEquation(reaction=jnp.sin),
        TypeError,
        "reaction=an object of type .* must be a term",
    ),
    "absent term": (lambda: ONE.only(("diffusion",)), ValueError, r"there is no term 'diffusion'; present are"),
    "exchanges": (lambda: pj.MultilayerEquation([ONE, ONE], []), ValueError, "2 layers need 1 exchanges.* but 0"),
    "no layers": (lambda: pj.MultilayerEquation([], []), ValueError, "0 layers need"),
    "layer type": (
        lambda: pj.MultilayerEquation([layered()], []),
        TypeError,
        "layers=.* must be a sequence .each entry a MasterEquation",
    ),
    "exchange type": (
        lambda: pj.MultilayerEquation([ONE, ONE], [3]),
        TypeError,
        r"exchange=\[3\] must be a sequence .each entry an Exchange",
    ),
    "kind": (lambda: pj.DepthVarying.from_layers([ONE], 1.0, "step"), ValueError, "kind='step' must be one of"),
    "layer of depth": (lambda: pj.DepthVarying.from_layers([3], 1.0), TypeError, "layers has a int"),
    "modes": (
        lambda: pj.smooth_random(ONE, 1.0, key=KEY, modes=-1),
        ValueError,
        "modes=-1 must be an integer of at least 0",
    ),
    "iid layers": (
        lambda: pj.iid(lambda key: ONE, 0, key=KEY),
        ValueError,
        "layers=0 must be an integer of at least 1",
    ),
    "iid scaling": (lambda: pj.iid(lambda key: ONE, 3, key=KEY, scaling="L"), ValueError, "scaling='L' must be one of"),
    "iid without strength": (
        lambda: pj.iid(lambda key: pj.MasterEquation(stabilization=pj.LinearDamping(1.0)), 3, key=KEY),
        ValueError,
        "whose strength carries the scaling",
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_message(name):
    check(*TERMS[name])
