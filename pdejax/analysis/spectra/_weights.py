r"""Eigenvalues of attention's two bilinear maps, the QK and the OV circuit of every layer and head."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import on_numbers, traced
from pdejax._depth import DepthVarying
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._figure import AbstractRecord
from pdejax.models._pairing import functional
from pdejax.terms import Attention
from pdejax.terms._normalization import Norm


class CircuitSpectrum(AbstractRecord):
    r"""Spectrum of a d × d matrix W of rank at most r = min(d_k, d), for every layer and head.

    - `eigenvalues (layers, H, r)`: complex, by falling modulus; the other d − r are 0.
    - `symmetric (layers, H, d)`: eigenvalues of S = (W + Wᵀ)/2, ascending. `rotation (layers, H, d)`: those of
      A = (W − Wᵀ)/2 divided by i, ascending: ±ω in pairs.
    - `symmetric_share (layers, H)`: $\|S\|_F^2/\|W\|_F^2 = \tfrac12 + \tfrac12\mathrm{tr}(W^2)/\|W\|_F^2$: 1 for a
      gradient-like, 0 for a purely rotating map; ½ + rounding of order 1/d for a random one. ½ for W = 0.
    - `positive (layers, H)`: share of the r eigenvalues with positive real part (0 if none is).
    - `norm (layers, H)`: $\|W\|_F$; `radius (layers, H)`: largest |eigenvalue|.
    """

    eigenvalues: Complex[Array, "layers H r"]
    symmetric: Float[Array, "layers H d"]
    rotation: Float[Array, "layers H d"]
    symmetric_share: Float[Array, "layers H"]
    positive: Float[Array, "layers H"]
    norm: Float[Array, "layers H"]
    radius: Float[Array, "layers H"]


class AttentionSpectra(AbstractRecord):
    r"""QK and OV circuits of every layer and head beside Gaussian weights of the same sizes.

    - `qk`, `ov`: the circuits; `qk_null`, `ov_null`: one draw of independent Gaussian weights with the same mean square per
      matrix, layer and head.
    - `qk_radius`, `ov_radius (layers, H)`: spectral radius of the null for large d and d_k,
      $\sqrt d\,\sigma_Q\sigma_K$ and $\sqrt{d\,d_k}\,\sigma_V\sigma_O$, σ the root mean square of each matrix: eigenvalues well
      outside the circle are structure, for d_k ≪ d they fill it evenly (circular law).
    """

    qk: CircuitSpectrum
    ov: CircuitSpectrum
    qk_null: CircuitSpectrum
    ov_null: CircuitSpectrum
    qk_radius: Float[Array, "layers H"]
    ov_radius: Float[Array, "layers H"]


@checked
@on_numbers
def attention_spectra(model: Any, *, key: PRNGKeyArray | None = None) -> AttentionSpectra:
    r"""Spectra of the circuits of softmax attention, per layer and head, tokens as rows:

    $$W_{QK} = \frac{W_QW_K^\top}{\sqrt{d_k}}\quad(\text{logit}_{ij} = x_iW_{QK}x_j^\top),\qquad
      W_{OV} = \alpha W_VW_O\quad(\text{update}_i = \textstyle\sum_jK_{ij}\,x_jW_{OV}),$$

    both d × d, where x is what attention sees: with a normalization inside, its scale g is folded in
    ($\mathrm{diag}(g)W\mathrm{diag}(g)$ and $\mathrm{diag}(g)W$); of a normalization of queries and keys its scale alone is
    folded in; biases, positions, a cap of the logits and a normalization after the operator are left out. Heads of one group
    share W_K and W_V. With W_OV = W_QK symmetric, tokens on the sphere ascend an energy (Geshkovski et al., arXiv
    2312.10794); eigenvalues of W_OV say what attention does to tokens that agree: positive ones copy them, negative ones turn
    them round (Elhage et al. 2021, transformer-circuits.pub/2021/framework).

    `model`: a `Transformer`, a `Simulator`, a `Network` or a `Discretization`, or its field, a `DepthVarying` or `MasterEquation`
    whose interaction is an `Attention`, or the `Attention` itself (one layer). For smooth weights the layers are those at the
    knots.

    The nonzero eigenvalues of a product AB are those of BA, which is d_k × d_k: O(layers·H·(d d_k² + d³)), the d³ from the
    symmetric parts. **Not jit-compatible**: nonsymmetric eigenvalues come from LAPACK through NumPy, in float64 whatever the
    weights are stored in.

    Raises `TypeError` for another model, an interaction that is not `Attention`, or traced weights; `ValueError` for weights
    that are not finite or are a cosine series in depth.
    """
    key = jax.random.key(0) if key is None else key
    attention = _attention(model)
    arrays = (attention.wq, attention.wk, attention.wv, attention.wo, attention.strength)
    if traced(*arrays):  # of a module whose arrays are no leaves
        raise TypeError("attention_spectra: works on numbers, not inside jit, vmap or grad; call it outside of them.")
    wq, wk, wv, wo, strength = (np.asarray(x, np.float64) for x in arrays)
    if wq.ndim == 3:
        wq, wk, wv, wo, strength = (x[None] for x in (wq, wk, wv, wo, strength))
    if not all(np.isfinite(x).all() for x in (wq, wk, wv, wo, strength)):
        raise ValueError("attention_spectra: weights are not all finite; check the training run.")
    if attention.norm is not None:
        scale = np.asarray(attention.norm.scale, np.float64).reshape(wq.shape[0], -1)[:, :, None, None]
        wq, wk, wv = wq * scale, wk * scale, wv * scale
    wq, wk = _scaled(wq, attention.norm_q), _scaled(wk, attention.norm_k)
    wk, wv = (np.repeat(w, wq.shape[2] // w.shape[2], axis=2) for w in (wk, wv))
    scale = wq.shape[-1] ** -0.5 if attention.logit_scale is None else attention.logit_scale
    # (layers, H, d, dk) for what reads tokens, (layers, H, dk, d) for what writes them.
    q, k, v = (np.swapaxes(w, 1, 2) for w in (wq * scale, wk, wv))
    o = wo * strength[:, None, None, None]
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    sizes = [np.sqrt(np.mean(w**2, axis=(-2, -1))) for w in (q, k, v, o)]
    drawn = [s[..., None, None] * rng.standard_normal(w.shape) for s, w in zip(sizes, (q, k, v, o), strict=True)]
    d, dk = q.shape[-2:]
    radius = (d * dk) ** 0.5
    return AttentionSpectra(
        _circuit(q, np.swapaxes(k, -1, -2)),
        _circuit(v, o),
        _circuit(drawn[0], np.swapaxes(drawn[1], -1, -2)),
        _circuit(drawn[2], drawn[3]),
        jnp.asarray(radius * sizes[0] * sizes[1]),
        jnp.asarray(radius * sizes[2] * sizes[3]),
    )


def _scaled(w: np.ndarray, norm: Norm | None) -> np.ndarray:
    """W_Q or W_K `(layers, d, H, dk)` times the scale of a norm of each head or of all heads at once."""
    if norm is None:
        return w
    scale = np.asarray(norm.scale, np.float64)
    return w * scale.reshape(w.shape[0], 1, -1, w.shape[-1])


def _circuit(read: np.ndarray, write: np.ndarray) -> CircuitSpectrum:
    """Spectrum of W = read @ write, (..., d, dk) @ (..., dk, d)."""
    w = read @ write
    small = write @ read if write.shape[-2] < read.shape[-2] else w
    values = np.linalg.eigvals(small).astype(complex)
    values = np.take_along_axis(values, np.argsort(-np.abs(values), axis=-1, kind="stable"), axis=-1)
    across = np.swapaxes(w, -1, -2)
    squared, trace = np.sum(w**2, axis=(-2, -1)), np.sum(w * across, axis=(-2, -1))
    share = 0.5 + 0.5 * trace / np.where(squared > 0, squared, 1)
    # Eigenvalues that are 0 to rounding have no sign.
    floor = 1e-12 * np.sqrt(squared)[..., None]
    return CircuitSpectrum(
        jnp.asarray(values),
        jnp.asarray(np.linalg.eigvalsh(0.5 * (w + across))),
        jnp.asarray(np.linalg.eigvalsh(-0.5j * (w - across))),
        jnp.asarray(share),
        jnp.asarray(np.mean(np.real(values) > floor, axis=-1)),
        jnp.asarray(np.sqrt(squared)),
        jnp.asarray(np.abs(values[..., 0])),
    )


def _attention(model: object) -> Attention:
    """The attention of a model, its weights with or without a leading axis of layers."""
    system = functional(model)
    if hasattr(system, "discretization"):
        found = system.discretization
        model = found if isinstance(found, Discretization) else found()
    model = model.field if isinstance(model, Discretization) else model
    if isinstance(model, DepthVarying):
        if model.kind == "cosine":
            raise ValueError(
                "attention_spectra: the weights are a cosine series, whose coefficients are no layers; give model.at(t)."
            )
        model = model.stacked
    if isinstance(model, MasterEquation):
        model = model.interaction
    if not isinstance(model, Attention):
        raise TypeError(
            f"attention_spectra: model holds a {type(model).__name__}; it must be a Transformer, an equation whose interaction "
            "is an Attention, or an Attention."
        )
    return model
