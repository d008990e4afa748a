"""Which sub-layer contracts, the cheap estimates of the spectral radius beside the true one, and when an answer will change."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import integer, on_numbers
from pdejax._figure import AbstractRecord, Figure
from pdejax.analysis.jacobian._operator import FORMED, Jacobian
from pdejax.analysis.loops._exits import NO_ANSWER
from pdejax.analysis.loops._loop import Loop, entries
from pdejax.analysis.loops._points import LoopSpectrum, loop_eigenvalues, state_of


class SublayerGains(AbstractRecord):
    r"""What each sub-layer of a pass, in `names`, does to a small change of the state.

    - `norms (m,)`: largest singular value of its Jacobian, the most it can do. `gains (m,)`: what it does to the dominant
      direction of the whole pass as that comes to it, $\|J_i v_i\|/\|v_i\|$: their product is the spectral radius. NaN after a 0.
    - `radius`: that of the pass, `product` of the norms. `converged`: whether the spectrum and all norms were found.
    """

    norms: Float[np.ndarray, "..."]
    gains: Float[np.ndarray, "..."]
    radius: float = eqx.field(static=True)
    product: float = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    converged: bool = eqx.field(static=True)


@checked
@on_numbers
def sublayer_gains(loop: Loop, u: ArrayLike, *, spectrum: LoopSpectrum | None = None) -> SublayerGains:
    r"""Say how much each sub-layer of a pass contracts or expands at the state `u (n, d)`, such as a fixed point.

    $DG = J_m\cdots J_1$ along the pass. A norm above 1 is no sign of instability: what the next does not see is lost. The gains
    along the dominant eigenvector multiply to |λ₁| exactly, so that their logarithms share it out. `spectrum`: of
    `loop_eigenvalues` at `u`, computed where it is not given.

    Cost: some tens of products forwards and backwards per sub-layer. Raises as `loop_eigenvalues`.
    """
    x = state_of("sublayer_gains", loop, u)
    found = loop_eigenvalues(loop, x, count=1) if spectrum is None else spectrum
    real = entries(loop)
    v = np.asarray(found.vector).ravel()[real]
    norms, gains, whole = [], [], found.converged
    for part in loop.parts:
        jacobian = Jacobian(part, x, loop.mask)
        norm = jacobian.norm()
        whole = whole and norm.converged
        norms.append(float(norm.values[-1]) if norm.values.size else np.nan)
        moved = jacobian.product(np.real(v)) + 1j * jacobian.product(np.imag(v))
        size = float(np.linalg.norm(v))
        gains.append(float(np.linalg.norm(moved)) / size if size > 0 else np.nan)
        v, x = moved, _applied(jacobian)
    return SublayerGains(
        np.asarray(norms), np.asarray(gains), found.radius, float(np.prod(norms)), loop.names, bool(whole)
    )


@eqx.filter_jit
def _applied(jacobian: Jacobian) -> Any:
    return jacobian.apply(jacobian.u)


class CheapRadii(AbstractRecord):
    r"""Estimates in use beside the spectral radius ρ of DG at a state.

    - `radius`: ρ, of the dominant eigenvalue; `residual` of that eigenvalue.
    - `estimates`: by name. Of random ones the mean over draws, from the least to the largest draw.
    """

    estimates: dict[str, Figure]
    radius: float = eqx.field(static=True)
    residual: float = eqx.field(static=True)

    def wrong_side(self) -> dict[str, float]:
        """Return the share of draws on the other side of 1 than ρ, by estimate: a loop called stable that is not, or the reverse.
        Of estimates without draws it is 0 or 1."""
        return {name: _wrong(figure, self.radius) for name, figure in self.estimates.items()}


ONE, POWER, LARGEST, NORM, PRODUCT, RATIO = (
    "one random vector",
    "power iteration, 5 steps",
    "largest entry of J",
    "spectral norm of J",
    "product of sub-layers' norms",
    "ratio of two steps",
)
DRAWS = "draws"


@checked
@on_numbers
def cheap_radii(
    loop: Loop,
    u: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    draws: int = 16,
    spectrum: LoopSpectrum | None = None,
    gains: SublayerGains | None = None,
) -> CheapRadii:
    r"""Compare the estimates of a loop's spectral radius that are in use with the radius itself, at `u (n, d)`.

    | estimate | what it is |
    |---|---|
    | one random vector | ‖Jv‖/‖v‖ of one Gaussian v: on average $\|J\|_F/\sqrt N$, which no eigenvalue need be near |
    | power iteration, 5 steps | the growth in the fifth product; of a complex pair it never settles |
    | largest entry of J | max J_ij ("A.max()"): the radius only of a diagonal J; up to 4,096 entries of the state |
    | spectral norm of J | σ_max, a bound from above |
    | product of sub-layers' norms | the bound that Lipschitz constants give |
    | ratio of two steps | ‖u₂ − u₁‖/‖u₁ − u₀‖ from u₀ = `u`, at a point itself 0/0 and left out |

    `draws` of random vectors from `key`. `spectrum`, `gains`: where they are known already. Raises as `loop_eigenvalues`.
    """
    owner = "cheap_radii"
    integer(owner, "draws", draws, 2)
    x = state_of(owner, loop, u)
    found = loop_eigenvalues(loop, x, count=1) if spectrum is None else spectrum
    parts = sublayer_gains(loop, x, spectrum=found) if gains is None else gains
    key = jax.random.key(0) if key is None else key
    jacobian = Jacobian(loop, x, loop.mask)
    # With the draws beside the figure: their ends are the least and the largest of them.
    one, five = (np.asarray(a, float) for a in _products(jacobian, jax.random.split(key, draws)))
    estimates = {ONE: _drawn(one), POWER: _drawn(five)}
    if jacobian.entries <= FORMED:
        estimates[LARGEST] = Figure(float(np.max(np.asarray(jacobian.matrix()))))
    norm = jacobian.norm()
    if norm.values.size:
        estimates[NORM] = Figure(float(norm.values[-1]))
    estimates[PRODUCT] = Figure(parts.product)
    states = np.asarray(loop_pair(loop, x))
    first, second = (float(np.linalg.norm(states[i + 1] - states[i])) for i in (0, 1))
    if first > 1e-9 * max(float(np.linalg.norm(states[0])), 1e-300):
        estimates[RATIO] = Figure(second / first)
    return CheapRadii(estimates, found.radius, float(found.residuals[0]) if len(found.residuals) else np.nan)


def _drawn(values: np.ndarray) -> Figure:
    return Figure(values.mean(), values.min(), values.max(), differences={DRAWS: Figure(values)})


def _wrong(figure: Figure, radius: float) -> float:
    values = np.atleast_1d(np.asarray(figure.differences.get(DRAWS, figure).value, float))
    return float(np.mean((values > 1) != (radius > 1)))


@eqx.filter_jit
def loop_pair(loop: Loop, u: Any) -> Any:
    """u, G(u) and G(G(u))."""
    first = loop(u)
    return jnp.stack([u, first, loop(first)])


@eqx.filter_jit
def _products(jacobian: Jacobian, keys: Any) -> Any:
    """Growth in the first and in the fifth product from a random direction, of each key."""
    push = jacobian.linearize()[1]

    def one(key):
        v = jax.random.normal(key, jacobian.u.shape, jacobian.u.dtype)
        v = v if jacobian.mask is None else jnp.where(jacobian.mask[:, None], v, 0)

        def step(v, _):
            v = v / jnp.sqrt(jnp.sum(v**2))
            w = push(v)
            return w, jnp.sqrt(jnp.sum(w**2))

        growth = jax.lax.scan(step, v, length=5)[1]
        return growth[0], growth[-1]

    return jax.lax.map(one, keys)


class PredictedChange(AbstractRecord):
    r"""When the answer of a network changes if its loop goes on, foreseen at one state.

    - `loops`: passes until it changes, `horizon + 1` where it does not within the horizon, 0 where there is none at `u` already.
      `measured`: the same by going on.
    - `answers`, `actual (horizon + 1, ...)`: foreseen and true answers after 0, 1, … further passes; −2 where the output is not
      finite, and from the first foreseen state on that is not.
    - `ritz (m,)`: the eigenvalues that the step excites, as the Krylov space has them, by falling modulus.
    """

    answers: Int[np.ndarray, "..."]
    actual: Int[np.ndarray, "..."]
    ritz: Any
    loops: int = eqx.field(static=True)
    measured: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)


@checked
@on_numbers
def predict_change(loop: Loop, u: ArrayLike, *, horizon: int = 64, krylov: int = 24) -> PredictedChange:
    r"""Foresee from the spectrum at `u`, such as the state after the trained number of passes, when the answer changes:

    $$u_j \approx u + \sum_{i<j} J^i s,\qquad s = G(u) - u,\quad J = DG(u),$$

    in the Krylov space of J and s with `krylov` products, read by the network's head; and measure it by going on for `horizon`
    passes. Of affine loops it is exact for the first `krylov` passes, and for all where the state has no more entries than that;
    then it is what those directions foresee. Far from `u` a curved loop leaves it. An answer is the entry with the largest
    logit, at every real token of a network that answers per token; one changes where any of them does.

    Raises `ValueError` for a loop without a head or numbers out of range.
    """
    owner = "predict_change"
    integer(owner, "horizon", horizon)
    integer(owner, "krylov", krylov, 2)
    x = state_of(owner, loop, u)
    real = entries(loop)
    jacobian = Jacobian(loop, x, loop.mask)
    step = np.asarray(_applied(jacobian) - x).ravel()[real]
    foreseen = np.tile(np.asarray(x).ravel(), (horizon + 1, 1))
    with np.errstate(over="ignore", invalid="ignore"):
        basis, matrix = _krylov(jacobian, step, min(krylov, int(real.sum())))
        part, total = np.zeros(len(matrix)), np.zeros(len(matrix))
        size = _length(step)
        if len(matrix):
            part[0] = size
        elif not np.isfinite(size):
            foreseen[1:] = np.nan
        for j in range(1, horizon + 1):
            total, part = total + part, matrix @ part
            foreseen[j, real] += total @ basis
        foreseen = foreseen.astype(x.dtype)
    # Nothing is foreseen of what is no number, nor of what follows.
    known = np.logical_and.accumulate(np.all(np.isfinite(foreseen), axis=1))
    foreseen = np.where(known[:, None], foreseen, 0).reshape(-1, *x.shape)
    actual = eqx.tree_at(lambda l: l.start, loop, x).states(horizon)
    answers, true = (answers_of(loop, states) for states in (jnp.asarray(foreseen, x.dtype), actual))
    unknown = ~known.reshape(-1, *[1] * (answers.ndim - 1))
    answers = np.where(unknown & (answers != -1), NO_ANSWER, answers)
    ritz = np.linalg.eigvals(matrix)
    return PredictedChange(
        answers,
        true,
        ritz[np.argsort(-np.abs(ritz))],
        _first(answers),
        _first(true),
        horizon,
    )


def answers_of(loop: Loop, states: Any) -> np.ndarray:
    """Which entry of the output is largest, `(k,)` or per token `(k, n)`, padding as −1; −2 where it is not finite."""
    if loop.read is None:
        raise ValueError("predict_change: this loop has no head, and so no answers; make it of a network.")
    found = np.asarray(_largest(loop, states))
    if found.ndim > 1 and loop.mask is not None and found.shape[-1] == loop.mask.shape[0]:
        found = np.where(np.asarray(loop.mask), found, -1)
    return found


@eqx.filter_jit
def _largest(loop: Loop, states: Any) -> Any:
    # State by state: of a large vocabulary the logits of all would not fit.
    def one(u):
        assert loop.read is not None
        out = loop.read(u)
        return jnp.where(jnp.all(jnp.isfinite(out), axis=-1), jnp.argmax(out, axis=-1), NO_ANSWER)

    return jax.lax.map(one, states)


def _first(answers: np.ndarray) -> int:
    """The first place where an answer differs from that at place 0, or there is none."""
    same = ((answers == answers[:1]) & (answers != NO_ANSWER)).reshape(len(answers), -1).all(axis=1)
    return len(answers) if same.all() else int(np.argmin(same))


def _length(x: np.ndarray) -> float:
    """The norm; its square need not be a number."""
    from scipy.linalg import norm

    return float(norm(x.astype(float), check_finite=False))


def _krylov(jacobian: Jacobian, start: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis `(m, N)` of the Krylov space of `start`, and J on it `(m, m)`; fewer where it is exhausted, and none
    of what is not finite."""
    size = _length(start)
    if not 0 < size < np.inf:
        return np.zeros((0, start.size)), np.zeros((0, 0))
    basis, matrix = [start / size], np.zeros((m + 1, m))
    for j in range(m):
        w = jacobian.product(basis[j].astype(start.dtype))
        before = float(np.linalg.norm(w))
        for _ in range(2):
            for i, v in enumerate(basis):
                along = float(v @ w)
                matrix[i, j] += along
                w = w - along * v
        matrix[j + 1, j] = left = float(np.linalg.norm(w))
        if left <= 1e-12 * max(before, 1e-300):
            m = j + 1
            break
        basis.append(w / left)
    return np.asarray(basis[:m]), matrix[:m, :m]
