"""The first step of an adaptive solve."""

import jax.numpy as jnp
from jaxtyping import Array


def starting_step(rate: Array | None, terms, t0: Array, t1: Array, u: Array, args, order, rtol, atol) -> Array:
    r"""Starting step of Hairer, Nørsett & Wanner, *Solving ODEs I*, II.4, capped by the stability bound of the damping.

    With the scaled norm $\|v\| = \mathrm{rms}(v/(\mathrm{atol} + \mathrm{rtol}|u|))$: a first guess $h_0 = \|u\|/(100\|f\|)$,
    one Euler step for the change of f, then $h_1 = (0.01/\max(\|f\|, \|f'\|))^{1/(p+1)}$ and $h = \min(100h_0, h_1)$. The cap
    is 2/`rate`, where explicit Euler stops being stable; None sets no cap. (diffrax 0.7.2 would start at 0.01 whatever
    the field.)
    """
    scale = atol + rtol * jnp.abs(u)
    scale = jnp.where(scale > 0, scale, jnp.finfo(u.dtype).tiny ** 0.5)

    def norm(v):
        return jnp.sqrt(jnp.mean((v / scale) ** 2))

    def field(t, y):
        value = terms.vf(t, y, args)
        return sum(value[1:], start=value[0]) if isinstance(value, tuple) else value

    f0 = field(t0, u)
    d0, d1 = norm(u), norm(f0)
    h0 = jnp.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / jnp.where(d1 > 0, d1, 1))
    h0 = jnp.minimum(h0, t1 - t0)
    d2 = norm(field(t0 + h0, u + h0 * f0) - f0) / h0
    curvature = jnp.maximum(d1, d2)
    h1 = jnp.where(
        curvature <= 1e-15,
        jnp.maximum(1e-6, h0 * 1e-3),
        (0.01 / jnp.where(curvature > 0, curvature, 1)) ** (1 / (order + 1)),
    )
    rate = jnp.zeros((), u.dtype) if rate is None else rate.astype(u.dtype)
    cap = jnp.where(jnp.isfinite(rate) & (rate > 0), 2 / jnp.where(rate > 0, rate, 1), jnp.inf)
    h = jnp.minimum(jnp.minimum(100 * h0, h1), jnp.minimum(cap, t1 - t0))
    return jnp.where(jnp.isfinite(h) & (h > 0), h, (t1 - t0) * 1e-6).astype(u.dtype)
