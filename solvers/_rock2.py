"""The second-order orthogonal Runge–Kutta–Chebyshev method."""

from typing import Any, ClassVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Real

from pdejax.solvers._base import Terms, Time, Y
from pdejax.solvers._rock2_polynomials import rock2_polynomial, rock2_table
from pdejax.solvers._stabilized import (
    AbstractStabilized,
    added,
    real_dtype,
    scaled,
    to_max_stages,
    to_scan_kind,
    to_spectral_radius,
    to_stages,
)


class ROCK2(AbstractStabilized):
    """Orthogonal Runge–Kutta–Chebyshev method of order 2: s stages are stable on [−β(s), 0] of the **real axis**, with
    β(s) ≈ 0.807 s² (0.68 s² for s = 3, 0.80 s² from s = 15), a quarter more than [`RKC2`][pdejax.solvers.RKC2].

    Its stability polynomial is R_s(z) = w(z) P_{s−2}(z), w(z) = 1 + 2σz + τz² with a pair of complex zeros, P_j orthogonal
    with respect to w²/√(1 − x²), order two and |R_s| ≤ 0.95 inside the interval; it is computed from these conditions,
    once for every s. The recurrence of P gives the stages and a two-stage method the factor w:

        g_0 = y,  g_1 = y + μ_1 h f(g_0),  g_j = μ_j h f(g_{j−1}) + (1 + κ_j) g_{j−1} − κ_j g_{j−2},   j = 2 … s − 2
        g*_{s−1} = g_{s−2} + hσ f(g_{s−2}),   g*_s = g*_{s−1} + hσ f(g*_{s−1})
        y(t + h) ≈ g*_s + e,   e = −hσ (1 − τ/σ²) (f(g*_{s−1}) − f(g_{s−2}))

    e = O(h²) is the error estimate, so that the global error is proportional to the tolerance. Order 2 in the step. Dense
    output is cubic Hermite, of order 2 and free: f at the end is the first stage of the next step, so that a step costs
    s evaluations. Not for dispersion or transport.

    **Arguments**, **Raises**, state and steps that fail: as for [`RKC2`][pdejax.solvers.RKC2], with at least 3 stages. A
    stage number chosen per step is one of 3 … 12 or of a sequence that grows by at most 10 %, up to `max_stages`.

    Source: Abdulle, Medovikov, Numer. Math. 90 (2001) 1, DOI 10.1007/s002110100292. The weight's zeros are
    chosen by a rule of our own, see `rock2_polynomial`.
    """

    stages: Any = eqx.field(default=None, converter=to_stages, static=True)
    spectral_radius: Any = eqx.field(default=None, converter=to_spectral_radius)
    max_stages: Any = eqx.field(default=200, converter=to_max_stages, static=True)
    scan_kind: Any = eqx.field(default=None, converter=to_scan_kind)

    fewest: ClassVar[int] = 3

    def __check_init__(self):
        self.check_numbers()

    def stability_limit(self, stages: int) -> float:
        """β(s), computed with the polynomial: |R_s| ≤ 1 on [−β, 0]."""
        return rock2_polynomial(stages).limit

    def choose(self, z: Real[Array, ""]) -> Int[Array, ""]:
        table = rock2_table(self.max_stages)
        index = jnp.searchsorted(jnp.asarray(table.limits, z.dtype), z)
        return jnp.asarray(table.stages, jnp.int32)[jnp.minimum(index, len(table.stages) - 1)]

    def estimate(self, y0: Y, y1: Y, k0: Y, k1: Y, error: Y | None) -> Y:
        return error

    def advance(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, k0: Y, args: Any, control: PyTree, stages: Any
    ) -> tuple[Y, Y]:
        # All stages as deviations from y0.
        dtype = real_dtype(y0)

        def increment(node, z):
            t = t0 + jnp.asarray(node).astype(jnp.result_type(t0)) * (t1 - t0)
            return terms.vf_prod(t, added(y0, z), args, control)

        def move(mu, kappa, node, z1, z2):
            return added(scaled(mu, increment(node, z1)), scaled(1.0 + kappa, z1), scaled(-kappa, z2))

        zero = jax.tree.map(jnp.zeros_like, y0)
        if isinstance(stages, int):
            method = rock2_polynomial(stages)
            sigma, tau, node = method.sigma, method.tau, method.nodes[-1]
            rows = [jnp.asarray(row, dtype) for row in (method.mu[1:], method.kappa[1:], method.nodes[1:-1])]

            def one(carry, row):
                return (move(*row, *carry), carry[0]), None

            (z, _), _ = jax.lax.scan(one, (scaled(method.mu[0], k0), zero), tuple(rows))
        else:
            table = rock2_table(self.max_stages)
            index = jnp.searchsorted(jnp.asarray(table.stages, jnp.int32), stages)

            def row_of(column: np.ndarray):
                return jnp.asarray(column, dtype)[index]

            mu, kappa, nodes, sigma, tau = map(row_of, (table.mu, table.kappa, table.nodes, table.sigma, table.tau))
            node = nodes[stages - 2]

            def body(carry):
                j, z1, z2 = carry
                return j + 1, move(mu[j - 1], kappa[j - 1], nodes[j - 1], z1, z2), z1

            _, z, _ = eqxi.while_loop(
                lambda carry: carry[0] <= stages - 2,
                body,
                (jnp.asarray(2, jnp.int32), scaled(mu[0], k0), zero),
                max_steps=self.max_stages,
                kind="checkpointed" if self.scan_kind is None else self.scan_kind,
            )
        k = increment(node, z)
        z = added(z, scaled(sigma, k))
        k_star = increment(node + sigma, z)
        error = scaled(sigma * (1.0 - tau / sigma**2), jax.tree.map(jnp.subtract, k, k_star))
        return added(y0, z, scaled(sigma, k_star), error), error
