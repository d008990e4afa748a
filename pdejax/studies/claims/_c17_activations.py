"""C17: v1 A.4, "smooth activation functions, such as ReLU"."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax.analysis import fit_order
from pdejax.analysis.numerics import fit_power
from pdejax.analysis.numerics._fit import OrderFit, order_over_seeds
from pdejax.runs._findings import FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.solvers import RK4, Heun
from pdejax.solvers._base import fresh_step
from pdejax.studies.claims._claim import Claim, high, near
from pdejax.terms import FeedForward
from pdejax.terms._reaction import ACTIVATIONS

SMOOTH = ("gelu", "silu", "tanh")
COUNTS = (8, 16, 32, 64)
KINKS = 200
REFERENCE = 2048


def measure(seed: int, seeds: int) -> Measured:
    """The jump of σ′ at 0; the largest slope of σ, and how it grows with the interval; and the order of RK4 on u′ = 1 + σ(u − c),
    u(0) = 0, which passes c on the way to t = 1: root mean square error over many c drawn from [0.2, 0.8], since a single error
    depends on where in a step the kink lies. With ReLU the solution is known, c − 1 + e^{t−c}."""
    jumps = {name: _jump(name) for name in ("relu", *SMOOTH)}
    orders: dict[str, list[OrderFit]] = {"relu": [], "relu_heun": [], "gelu": []}
    for s in range(seeds):
        c = jnp.asarray(np.random.default_rng([seed, s]).uniform(0.2, 0.8, KINKS))
        for name, scheme in (("relu", "rk4"), ("relu_heun", "heun"), ("gelu", "rk4")):
            activation = name.split("_")[0]
            # A fine solution in place of GELU's, which has no closed form.
            exact = (
                c - 1 + jnp.exp(1 - c) if activation == "relu" else _ends(c, "rk4", activation, jnp.asarray(REFERENCE))
            )
            errors = [
                float(jnp.sqrt(jnp.mean((_ends(c, scheme, activation, jnp.asarray(n)) - exact) ** 2))) for n in COUNTS
            ]
            fit = fit_power if activation == "relu" else fit_order
            orders[name].append(fit([1 / n for n in COUNTS], errors))
    figures = {
        "lipschitz_constant_relu": _slope("relu"),
        "growth_of_the_largest_slope": max(_slope(name, 60.0) / _slope(name) for name in ("relu", *SMOOTH)),
        "derivative_jump_relu": jumps["relu"],
        "order_rk4_relu": over_seeds([fit.order for fit in orders["relu"]]),
        "order_heun_relu": over_seeds([fit.order for fit in orders["relu_heun"]]),
    }
    corrected = {
        **{f"derivative_jump_{name}": jumps[name] for name in SMOOTH},
        "order_rk4_gelu": order_over_seeds(orders["gelu"]),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """What the sentence is for is the condition of Theorem 1, Lipschitz continuity: it holds if no slope of a chord of ReLU and
    of its variants is larger on an interval ten times as long, else it fails. That it calls ReLU smooth, which the theorem does
    not ask for, is in the corrected statement."""
    return HOLDS if evidence["growth_of_the_largest_slope"] <= 1 + 1e-3 else FAILS


def bears_out(evidence: Evidence) -> bool:
    """ReLU has slope 1 at most, a jump of 1 and order 2; the others have no jump, and RK4 keeps its order."""
    relu = abs(evidence["lipschitz_constant_relu"] - 1) < 1e-6 and abs(evidence["derivative_jump_relu"] - 1) < 1e-6
    smooth = all(evidence[f"derivative_jump_{name}"] < 1e-6 for name in SMOOTH)
    return bool(relu and smooth and high(evidence["order_rk4_relu"]) < 2.3 and near(evidence["order_rk4_gelu"], 4))


def _jump(name: str) -> float:
    slope = jax.grad(lambda z: ACTIVATIONS[name](z))
    return abs(float(slope(1e-9)) - float(slope(-1e-9)))


def _slope(name: str, end: float = 6.0) -> float:
    """The largest slope of a chord between neighbours, 0.005 apart, on [−end, end]."""
    z = np.linspace(-end, end, round(400 * end) + 1)
    values = np.asarray(ACTIVATIONS[name](jnp.asarray(z)))
    return float(np.max(np.abs(np.diff(values) / np.diff(z))))


@eqx.filter_jit
def _ends(kinks: Array, scheme: str, activation: str, steps: Array) -> Array:
    """u(1) for every kink, by that many steps."""
    solver = RK4() if scheme == "rk4" else Heun()
    network = FeedForward(1, 1, key=jax.random.key(0), activation=activation)

    def one(c):
        one = jnp.ones((1, 1))
        term = eqx.tree_at(lambda r: (r.w1, r.b1, r.w2, r.b2), network, (one, -c[None], one, jnp.ones(1)))
        h = 1.0 / steps.astype(float)

        def step(_, u):
            return fresh_step(solver, diffrax.ODETerm(term), jnp.zeros_like(h), h, u, None)[0]

        return jax.lax.fori_loop(0, steps, step, jnp.zeros((1, 1)))[0, 0]

    return jax.vmap(one)(kinks)


def smallest() -> Counterexample:
    """The slopes of max(0, z) on both sides of 0."""
    z = np.array([-1e-3, 0.0, 1e-3])
    return Counterexample(
        "σ(z) = max(0, z) at three points: the left slope at 0 is 0, the right one 1.",
        {"z": z, "sigma": np.maximum(z, 0)},
    )


C17 = Claim(
    id="C17",
    statement="activation functions such as ReLU or its variants satisfy the conditions of Theorem 1",
    source="v1 A.4",
    quote="Theorem 1 …: … assuming A(u) and R(u, θ, t, x) satisfy Lipschitz continuity … Methods to Satisfy Conditions in "
    "Transformers: Use smooth activation functions, such as ReLU or its variants. (v1 A.4)",
    condition="ReLU is Lipschitz with constant 1, which is what the theorem asks for, but it is not smooth: its derivative jumps "
    "by 1 at 0, and no scheme keeps an order above 2. GELU, SiLU and tanh are smooth",
    bears_out=bears_out,
    headline=("lipschitz_constant_relu", "derivative_jump_relu", "order_rk4_relu", "order_rk4_gelu"),
    measure=measure,
    judge=judge,
)
