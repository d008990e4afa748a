"""The equations of the `simulate` tests once more in NumPy and SciPy, and a term that counts its calls."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import erf

from pdejax import MasterEquation
from pdejax.terms import AbstractTerm, Attention, FeedForward

N, D, T1 = 6, 4, 1.5


class Tally:
    """How often a term was called while tracing, and how often it was evaluated while running."""

    def __init__(self):
        self.traced = self.evaluated = 0

    def tick(self, _):
        self.evaluated += 1
        return np.zeros(())


class Counted(AbstractTerm):
    """A term that counts its calls."""

    term: AbstractTerm
    tally: Tally = eqx.field(static=True)

    def __call__(self, t, u, args):
        self.tally.traced += 1
        # Not jax.debug.callback: that one would keep evaluations alive which nothing reads.
        zero = jax.pure_callback(self.tally.tick, jax.ShapeDtypeStruct((), jnp.float64), jnp.sum(u) + t)
        return self.term(t, u, args) + zero

    def damping(self):
        return self.term.damping()

    def check(self, n, d):
        self.term.check(n, d)


def field(seed=0, shape=(N, D)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def master(key, tally=None, **options):
    k1, k2 = jax.random.split(key)
    interaction = Attention(D, 2, leak=True, strength=0.8, key=k1)
    reaction = FeedForward(D, 6, key=k2, **options)
    if tally is not None:
        interaction, reaction = Counted(interaction, tally), Counted(reaction, tally)
    return MasterEquation(interaction=interaction, reaction=reaction)


# --- The same in NumPy --------------------------------------------------------------------------------------


def numpy_terms(equation):
    """[A(u), R(u)] of `master` as NumPy functions."""
    a, r = equation.interaction, equation.reaction
    a, r = (x.term if isinstance(x, Counted) else x for x in (a, r))
    wq, wk, wv, wo, w1, b1, w2, b2 = (np.asarray(w) for w in (a.wq, a.wk, a.wv, a.wo, r.w1, r.b1, r.w2, r.b2))

    def interaction(u):
        logits = np.einsum("id,dhk,je,ehk->hij", u, wq, u, wk, optimize=True) / np.sqrt(wq.shape[-1])
        kernel = np.exp(logits - logits.max(axis=-1, keepdims=True))
        kernel /= kernel.sum(axis=-1, keepdims=True)
        return float(a.strength) * (np.einsum("hij,jd,dhk,hke->ie", kernel, u, wv, wo, optimize=True) - u)

    def reaction(u):
        z = u @ w1 + b1
        return {"gelu": 0.5 * z * (1 + erf(z / np.sqrt(2))), "relu": np.maximum(z, 0)}[r.activation] @ w2 + b2

    return [interaction, reaction]


def numpy_field(equation):
    terms = numpy_terms(equation)
    return lambda t, u: sum(f(u) for f in terms)


def numpy_cosine_field(varying):
    """θ(t) = Σ θ_k cos(πkt/T), then the field with those weights."""
    arrays, static = eqx.partition(varying.stacked, eqx.is_array)
    stacked = jax.tree.map(np.asarray, arrays)

    def f(t, u):
        basis = np.cos(np.pi * np.arange(varying.size) * t / varying.t1)
        weights = jax.tree.map(lambda leaf: np.tensordot(basis, leaf, axes=1), stacked)
        return numpy_field(eqx.combine(weights, static))(t, u)

    return f


def scipy_solve(f, u0, t1, t0=0.0, ts=None):
    """DOP853 to near rounding; the values at `ts` (default t1)."""
    ts = [t1] if ts is None else ts
    shape = np.shape(u0)
    solution = solve_ivp(
        lambda t, y: f(t, y.reshape(shape)).ravel(), (t0, t1), np.ravel(u0), "DOP853", ts, rtol=1e-13, atol=1e-13
    )
    return solution.y.T.reshape(len(ts), *shape)


def distance(a, b):
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
