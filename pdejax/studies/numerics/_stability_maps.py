"""Maps of forward Euler's stability over (h, Δx, α, γ, ‖W‖), family by family, and what the two bounds say of each run.

Every run has n = 8 tokens of d = 4 features on a Neumann grid of spacing Δx, D = 0.05, starts from tokens of size 1, and
carries a perturbation along, so that a bounded state with growing perturbations is seen as well.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.artist import Artist
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pdejax._equation import MasterEquation
from pdejax.analysis.numerics import token_max_norm
from pdejax.analysis.stability import v1_21
from pdejax.plot._style import COLOURS
from pdejax.runs.sweep import Sweep
from pdejax.solvers import Grid
from pdejax.studies.numerics._stability_config import StabilityConfig
from pdejax.terms import Attention, Diffusion, FeedForward, LayerNorm, LinearDamping

TOKENS, DIM, HIDDEN = 8, 4, 8
DIFFUSIVITY = 0.05
VALUE_NORM = 0.5  # of W_V in the softmax and pre-LN families
EXCESS = math.log(1e3)  # growth beyond the flow's own that counts as unstable
RANGE = math.log(1e100)  # where a run is stopped
STATUS = ("stable", "unstable", "overflow")
QUARTER_TURN = np.kron(np.eye(DIM // 2), [[0.0, 1.0], [-1.0, 0.0]])  # an isometry's generator: uJ ⊥ u
AXES = ("step", "spacing", "strength", "damping", "weight")

# The other axis of a family's slice, over which it is plotted against h.
SLICES = {
    "diffusion": "spacing",
    "leak": "strength",
    "mean attention": "weight",
    "linear reaction": "weight",
    "softmax attention": "weight",
    "pre-LN block": "spacing",
    "rotation": "weight",
}
RANGES = {"step": (1e-2, 10.0), "spacing": (0.05, 1.0), "strength": (0.1, 10.0), "weight": (0.1, 30.0)}


class Parameters(NamedTuple):
    """What a run is made of, one number each: h, Δx, attention's strength, decay c, the reaction's strength, and the scales
    of W_Q, W_K and of W_V."""

    step: Any
    spacing: Any
    attention: Any
    decay: Any
    reaction: Any
    query: Any
    value: Any


class Measured(NamedTuple):
    """What a run showed: log growth of the state and of the perturbation in the token-max norm, and the smallest standard
    deviation of a token over its features, which limits the derivative of LayerNorm."""

    state: Any
    perturbation: Any
    spread: Any


@dataclasses.dataclass(frozen=True)
class Family:
    """Weights of a family, by which it maps a point (h, Δx, α, γ, ±‖W‖) to a run and to the constants of its bounds."""

    name: str
    equation: MasterEquation

    def parameters(self, points: dict[str, np.ndarray]) -> Parameters:
        h, dx, alpha, gamma, w = (points[name] for name in AXES)
        zero, one = np.zeros_like(h), np.ones_like(h)
        match self.name:
            case "diffusion":
                return Parameters(h, dx, zero, zero, zero, zero, zero)
            case "leak":
                return Parameters(h, dx, alpha, alpha + gamma, zero, zero, zero)
            case "mean attention":
                return Parameters(h, dx, alpha, zero, zero, zero, w)
            case "linear reaction":
                return Parameters(h, dx, zero, zero, np.abs(w), zero, zero)
            case "rotation":
                return Parameters(h, dx, zero, alpha + gamma, np.abs(w), zero, zero)
            case "softmax attention":
                return Parameters(h, dx, alpha, alpha + gamma, zero, np.sqrt(np.abs(w)), one)
            case _:
                return Parameters(h, dx, alpha, zero, one, one, one)

    def constants(self, points: dict[str, np.ndarray], spread: np.ndarray) -> dict[str, np.ndarray]:
        """Of every run: decay c, the Lipschitz constant G of the rest in the token-max norm, bounds on the rates at which the
        flow itself lets the state and a perturbation grow, the size its field can have at most (else inf), and ‖W_O‖₂.

        In the linear families everything is exact, the rates are those of the fastest mode, and a reaction −wu is decay. Where
        G > c the corrected bound has no certificate: mean attention and the pre-LN block, which have no leak, and rotation faster
        than its leak. Softmax attention: certified on
        the ball of the start, which |||u||| does not leave while α‖W_V‖ ≤ c. Pre-LN: from the certificate on the ball √d of
        normalized tokens and the derivative 1/√(σ² + ε) of LayerNorm at the least σ that the run met.
        """
        _, _, alpha, gamma, w = (points[name] for name in AXES)
        zero, one = np.zeros_like(alpha), np.ones_like(alpha)
        inf = np.full_like(alpha, np.inf)
        match self.name:
            case "diffusion":
                return _row(zero, zero, zero, zero, inf, zero)
            case "leak":
                return _row(alpha + gamma, zero, -alpha - gamma, -alpha - gamma, inf, zero)
            case "mean attention":
                rate = alpha * np.maximum(w, 0)
                return _row(zero, alpha * np.abs(w), rate, rate, inf, one)
            case "linear reaction":
                return _row(np.abs(w), zero, -np.abs(w), -np.abs(w), inf, zero)
            case "rotation":
                return _row(alpha + gamma, np.abs(w), -alpha - gamma, -alpha - gamma, inf, zero)
            case "softmax attention":
                lipschitz = alpha * VALUE_NORM * (1 + 2 * np.abs(w))
                decay = alpha + gamma
                return _row(decay, lipschitz, alpha * VALUE_NORM - decay, lipschitz - decay, inf, one)
            case _:
                network = np.linalg.norm(self.equation.reaction.w1, 2) * np.linalg.norm(self.equation.reaction.w2, 2)
                slope = alpha * VALUE_NORM * (1 + 2 * DIM) + 1.129 * network  # sup|GELU'| = 1.129
                lipschitz = slope / np.sqrt(spread**2 + 1e-6)
                size = (alpha * VALUE_NORM + network) * math.sqrt(DIM)
                return _row(zero, lipschitz, zero, lipschitz, size, one)


def _row(decay, lipschitz, state_rate, perturbation_rate, size, output_norm) -> dict[str, np.ndarray]:
    return {
        "decay": decay,
        "lipschitz": lipschitz,
        "state_rate": state_rate,
        "perturbation_rate": perturbation_rate,
        "size": size,
        "output_norm": output_norm,
    }


def family(name: str, seed: int) -> Family:
    """A family's weights: all have the terms attention, reaction, diffusion and linear damping, some switched off by zeros,
    so that all but the pre-LN block share one compiled function."""
    keys = jax.random.split(jax.random.key(seed), 5)
    normed = name == "pre-LN block"
    norm = LayerNorm(DIM) if normed else None
    attention = Attention(DIM, key=keys[0], norm=norm)
    eye = jnp.eye(DIM)
    query, key, value = (_unit(k) for k in keys[1:4])
    values = eye if name == "mean attention" else VALUE_NORM * value
    # ‖B‖₂ = ‖W_Q W_Kᵀ‖₂/√d_k = 1.
    attention = eqx.tree_at(
        lambda a: (a.wq, a.wk, a.wv, a.wo),
        attention,
        (query[:, None] * DIM**0.25, key[:, None] * DIM**0.25, values[:, None], eye[None]),
    )
    reaction = FeedForward(DIM, HIDDEN, key=keys[4], activation="gelu" if normed else "identity", norm=norm)
    if not normed:
        wide = jnp.concatenate([eye, jnp.zeros((DIM, HIDDEN - DIM))], axis=1)
        linear = QUARTER_TURN if name == "rotation" else -eye
        reaction = eqx.tree_at(lambda r: (r.w1, r.w2), reaction, (linear @ wide, wide.T))
    grid = Grid(TOKENS, length=jnp.asarray(float(TOKENS)))
    return Family(
        name,
        MasterEquation(
            interaction=attention,
            reaction=reaction,
            diffusion=Diffusion(grid, DIFFUSIVITY),
            stabilization=LinearDamping(0.0),
        ),
    )


def _unit(key: Array) -> Array:
    """A random orthogonal matrix, whose norm is 1 and whose products have norm 1 as well."""
    q, _ = jnp.linalg.qr(jax.random.normal(key, (DIM, DIM)))
    return q


def with_parameters(equation: MasterEquation, p: Parameters) -> MasterEquation:
    """The equation of one run."""

    def leaves(e):
        a, r = e.interaction, e.reaction
        return (a.strength, a.wq, a.wk, a.wv, r.strength, e.diffusion.grid.length, e.stabilization.gamma)

    a = equation.interaction
    values = (p.attention, a.wq * p.query, a.wk * p.query, a.wv * p.value, p.reaction, p.spacing * TOKENS, p.decay)
    return eqx.tree_at(leaves, equation, values)


def start_fields(seed: int) -> tuple[Array, Array]:
    """The state every run starts from, with tokens of size 1, and its perturbation, of token-max norm 1."""
    u, v = jax.random.normal(jax.random.key(seed + 1), (2, TOKENS, DIM))
    return u / jnp.linalg.norm(u, axis=1, keepdims=True), v / token_max_norm(v)


def run_one(equation: MasterEquation, p: Parameters, u0: Array, v0: Array, steps: int) -> Measured:
    """One Euler run, with a perturbation that is rescaled after every step."""
    limit, single = math.exp(RANGE), with_parameters(equation, p)

    def advance(u):
        return u + p.step * single(0.0, u, None)

    def body(carry, _):
        u, v, grown, spread, alive = carry
        new, pushed = jax.jvp(advance, (u,), (v,))
        size = token_max_norm(pushed)
        alive = alive & (token_max_norm(new) <= limit) & jnp.isfinite(size)
        u = jnp.where(alive, new, u)
        positive = alive & (size > 0)
        v = jnp.where(positive, pushed / jnp.where(positive, size, 1.0), v)
        grown = grown + jnp.where(alive, jnp.log(jnp.where(size > 0, size, 1e-300)), 0.0)
        spread = jnp.minimum(spread, jnp.where(alive, jnp.min(jnp.std(new, axis=1)), spread))
        return (u, v, grown, spread, alive), None

    start = (u0, v0, jnp.zeros(()), jnp.min(jnp.std(u0, axis=1)), jnp.asarray(True))
    (u, _, grown, spread, alive), _ = jax.lax.scan(body, start, length=steps)
    size = jnp.log(jnp.maximum(token_max_norm(u), 1e-300))
    return Measured(jnp.where(alive, size, RANGE), jnp.where(alive, grown, jnp.maximum(grown, RANGE)), spread)


@eqx.filter_jit
def run_chunk(equation: MasterEquation, parameters: Parameters, u0: Array, v0: Array, steps: int) -> Measured:
    """Euler runs, one per entry of `parameters`."""
    return jax.vmap(lambda p: run_one(equation, p, u0, v0, steps))(parameters)


def map_sweep(config: StabilityConfig, kind: Family, where: dict[str, np.ndarray]) -> Sweep:
    """The runs of a family as a sweep whose one axis is their number: a slice and draws are no product of axes."""
    parameters = Parameters(*(jnp.asarray(values) for values in kind.parameters(where)))
    u0, v0 = start_fields(config.seed)

    def measure(key, *, run):
        del key  # all start alike
        chosen = Parameters(*(values[run] for values in parameters))
        return run_one(kind.equation, chosen, u0, v0, config.steps)._asdict()

    return Sweep(
        name=f"map of {kind.name}",
        measure=measure,
        axes={"run": np.arange(len(where["step"])).tolist()},
        dims={name: () for name in Measured._fields},
        chunk=config.chunk,
        lanes=None,
    )


def points(config: StabilityConfig, name: str) -> dict[str, np.ndarray]:
    """The runs of a family: first the plotted slice, h against its other axis with α = 1, γ = 0, Δx = 1, ‖W‖ = 1, where
    mean attention has both signs of W; then draws over all axes."""
    size, other = config.resolution, SLICES[name]
    low, high = RANGES[other]
    # From −1 to 1 for an axis with both signs, else from 0 to 1.
    share = np.linspace(-1.0 if name == "mean attention" else 0.0, 1.0, size)
    second = np.where(share < 0, -1.0, 1.0) * low * (high / low) ** np.abs(share)
    h, across = np.meshgrid(np.geomspace(*RANGES["step"], size), second, indexing="ij")
    slices = {axis: np.zeros_like(h) if axis == "damping" else np.ones_like(h) for axis in AXES}
    slices.update({"step": h, other: across})
    rng = np.random.default_rng((config.seed, tuple(SLICES).index(name)))
    drawn = {key: np.exp(rng.uniform(np.log(low), np.log(high), config.draws)) for key, (low, high) in RANGES.items()}
    drawn["damping"] = np.where(rng.random(config.draws) < 0.5, 0.0, rng.permutation(drawn["strength"]))
    drawn["weight"] = drawn["weight"] * rng.choice([-1.0, 1.0], config.draws)
    return {key: np.concatenate([slices[key].ravel(), drawn[key]]) for key in AXES}


def classify(kind: Family, where: dict[str, np.ndarray], measured: Measured, steps: int) -> dict[str, Any]:
    """Status of every run and the left sides of both bounds, each safe at up to 1.

    - *overflow*: over the run the flow itself may grow by 1e100, so that nothing can be told.
    - *unstable*: state or perturbation grew more than a thousandfold beyond what the flow allows them. A perturbation
      whose own allowance is out of range is not judged.
    - *stable*: everything else.

    `corrected_left` is inf where G > c: the corrected bound certifies no step there.
    """
    known = kind.constants(where, np.asarray(measured.spread))
    depth = where["step"] * steps
    allowed = np.maximum(known["state_rate"], 0) * depth
    with np.errstate(invalid="ignore"):
        allowed = np.where(np.isfinite(known["size"]), np.log1p(known["size"] * depth), allowed)
    overflow = allowed + EXCESS > RANGE
    own = np.maximum(known["perturbation_rate"], 0) * depth
    grew = (own + EXCESS <= RANGE) & (measured.perturbation > own + EXCESS)
    unstable = (measured.state > allowed + EXCESS) | grew
    diffusive = 4 * DIFFUSIVITY / where["spacing"] ** 2
    return {
        "status": np.where(overflow, 2, np.where(unstable, 1, 0)),
        "v1_left": v1_21(
            where["step"],
            where["spacing"],
            diffusivity=DIFFUSIVITY,
            strength=where["strength"],
            output_norm=known["output_norm"],
        ),
        "corrected_left": np.where(
            known["lipschitz"] <= known["decay"],
            where["step"] * (diffusive + known["decay"] + known["lipschitz"]) / 2,
            np.inf,
        ),
    }


# Light fills under dark lines, told apart by every kind of colour vision (Okabe & Ito), and in print by lightness.
FILL_LABELS = ("measured stable", "measured unstable", "the flow itself overflows")
FILLS = ("#CFE8F5", "#F2B48A", "#DDDDDD")
LABELS = {
    "spacing": "token spacing Δx",
    "strength": "strength α of attention and its leak",
    "weight": "size of the weights ‖W‖₂",
}
WEIGHTS = {
    "mean attention": "w of W_V = wI",
    "linear reaction": "rate w of R(u) = −wu",
    "softmax attention": "size ‖W_Q W_Kᵀ‖₂/√d_k",
    "rotation": "frequency w of R(u) = wuJ, leak 1",
}
V1 = {"colors": COLOURS[3], "linewidths": 2.0, "linestyles": "dashed"}
CORRECTED = {"colors": COLOURS[0], "linewidths": 2.0, "linestyles": "solid"}


def map_plot(runs: xr.Dataset) -> Figure:
    """One panel per family over its slice: status as fill, v1 (21) dashed, the corrected bound solid where G ≤ c (there is none
    elsewhere). Orange to the left of the dashed line is where v1 (21) promises stability wrongly; blue to the right of it where
    it warns wrongly."""
    names = list(runs.family.values)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.3 * columns + 0.4, 3.5 * rows + 0.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    size = int(runs.attrs["resolution"])
    for axes, name in zip(panels, names, strict=False):
        cut = runs.sel(family=name).isel(run=slice(0, size**2))
        axis = str(cut.slice_axis.values)
        h, other, status, v1, corrected = (
            np.asarray(cut[key].values, float).reshape(size, size)
            for key in ("step", axis, "status", "v1_left", "corrected_left")
        )
        axes.pcolormesh(h, other, status, cmap=ListedColormap(FILLS), vmin=-0.5, vmax=2.5, shading="nearest")
        # Logarithms, in which both left sides are straight: the lines are then exact between the points.
        for left, style in ((corrected, CORRECTED), (v1, V1)):
            positive = np.where(np.isfinite(left), np.log(np.clip(left, 1e-300, 1e300)), np.nan)
            if np.any(positive < 0) and np.any(positive > 0):
                axes.contour(h, other, positive, levels=[0.0], **style)
        axes.set_xscale("log")
        if other.min() < 0:
            axes.set_yscale("symlog", linthresh=float(np.abs(other).min()))
        else:
            axes.set_yscale("log")
        axes.set_xlabel("step h")
        axes.set_ylabel(WEIGHTS.get(name, LABELS[axis]) if axis == "weight" else LABELS[axis])
        wrong = int(np.sum((v1 <= 1) & (status == 1)))
        alarm = int(np.sum((v1 > 1) & (status == 0)))
        axes.set_title(
            f"{name}\nv1 (21) wrong on {wrong + alarm} of {size**2}: {wrong} safe, {alarm} alarm", fontsize=10
        )
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    handles: list[Artist] = [Patch(facecolor=fill, label=text) for fill, text in zip(FILLS, FILL_LABELS, strict=True)]
    handles.append(Line2D([], [], color=V1["colors"], linestyle="dashed", label="v1 (21) = 1: safe to the left"))
    handles.append(Line2D([], [], color=CORRECTED["colors"], label="corrected bound, where G ≤ c: safe to the left"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5 if columns == 3 else 2, fontsize=9, frameon=False
    )
    figure.suptitle("Forward Euler on the terms of the master equation", fontsize=12)
    return figure
