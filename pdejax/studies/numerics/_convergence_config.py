"""What a convergence study is asked to do, and the equation and real input it works on."""

import dataclasses
import difflib
import math
import pathlib
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdejax._depth import DepthVarying, smooth_random
from pdejax._equation import MasterEquation
from pdejax._types import Activation, Field
from pdejax.data import digits, listops
from pdejax.models import Architecture, Transformer, lift, load_model
from pdejax.solvers import SOLVERS
from pdejax.studies.numerics._spatial import check_tokens

Dataset = Literal["listops", "digits"]
Weights = Literal["smooth", "iid", "checkpoint"]
FieldNorm = Literal["pre", "peri", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvergenceConfig:
    """Configuration of the convergence study.

    - `dataset`, `length`: the real input, one ListOps expression of exactly `length` tokens, or a `digits` image of 64 pixels.
    - `dim`, `heads`, `ffn` (None: 4·dim), `norm`, `activation`, `seed`: the Transformer whose weights and embedding are used.
    - `weights`: `"smooth"`, θ(t) smooth in depth around the first layer (v2 Thm 3.2 applies); `"iid"`, the Transformer's own
      independent `layers`, refined layer by layer at residual scale 1/layers; `"checkpoint"`, a saved Transformer.
    - `layers`: layers of the network; with smooth weights the network is one Euler step per layer.
    - `depth`: T (None: 2 for smooth weights, 1 for iid, the number of layers for a checkpoint).
    - `steps` or `dt`: the sweep (None: 4·2^k for smooth weights, layers·2^k else). Each dt must divide the depth.
    - `solvers`: names from `pdejax.solvers.SOLVERS`. `tolerance` of the reference.
    - `spatial`: numbers of tokens for the spatial order q of v1 (24), with `diffusivity` D; empty to leave it out.
    - `regimes`: numbers of layers for the regime measurement, with `draws` networks each; empty to leave it out.
    - `out`: folder for results, or None.

    Raises `ValueError`/`TypeError` naming the argument.
    """

    dataset: Dataset = "listops"
    length: int = 48
    dim: int = 32
    layers: int = 6
    heads: int = 4
    ffn: int | None = None
    norm: FieldNorm = "pre"
    activation: Activation = "gelu"
    weights: Weights = "smooth"
    checkpoint: str | None = None
    seed: int = 0
    depth: float | None = None
    steps: tuple[int, ...] | None = None
    dt: tuple[float, ...] | None = None
    solvers: tuple[str, ...] = ("euler", "lietrotter", "heun", "strang", "rk4")
    tolerance: float = 1e-13
    spatial: tuple[int, ...] = (16, 32, 64, 128)
    diffusivity: float = 0.02
    regimes: tuple[int, ...] = (8, 32, 128)
    draws: int = 12
    out: str | None = None

    def __post_init__(self):
        for name, allowed in (
            ("dataset", get_args(Dataset)),
            ("weights", get_args(Weights)),
            ("norm", get_args(FieldNorm)),
            ("activation", get_args(Activation)),
        ):
            if getattr(self, name) not in allowed:
                hint = " (post-LN projects after every step: its limit is a flow on the normalized fields)" * (
                    name == "norm"
                )
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}{hint}.")
        least = {"length": 1, "dim": 1, "layers": 1, "heads": 1, "ffn": 1, "draws": 2, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not ((whole and value >= smallest) or (name == "ffn" and value is None)):
                raise ValueError(f"{name}={value!r} must be an integer of at least {smallest}.")
        if self.dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide dim={self.dim}.")
        if self.depth is not None and not (_is_number(self.depth) and self.depth > 0):
            raise ValueError(f"depth={self.depth!r} must be positive and finite.")
        if not (_is_number(self.tolerance) and 1e-14 <= self.tolerance <= 1e-3):
            raise ValueError(f"tolerance={self.tolerance!r} must lie between 1e-14, the limit of float64, and 1e-3.")
        if not (_is_number(self.diffusivity) and self.diffusivity >= 0):
            raise ValueError(f"diffusivity={self.diffusivity!r} must be finite and not negative.")
        if self.steps is not None and self.dt is not None:
            raise ValueError("give steps or dt, not both.")
        if (self.weights == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("weights='checkpoint' and checkpoint=PATH belong together: give both or neither.")
        for name in ("solvers", "steps", "dt", "spatial", "regimes"):
            if not isinstance(getattr(self, name), tuple | list | None):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a tuple, such as ({getattr(self, name)!r},).")
        if not self.solvers:
            raise ValueError("solvers is empty; name at least one.")
        for name in self.solvers:
            if name not in SOLVERS:
                close = difflib.get_close_matches(name, SOLVERS, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"solvers: {name!r} is unknown.{hint} Known: {', '.join(SOLVERS)}.")
        for name in ("steps", "spatial", "regimes"):
            values = getattr(self, name)
            if values is not None and any(not isinstance(v, int) or v < 1 for v in values):
                raise ValueError(f"{name}={values} must be positive integers.")
        if self.spatial:
            check_tokens(self.spatial)
        if self.regimes and len(set(self.regimes)) < 2:
            raise ValueError(f"regimes={self.regimes} must hold at least two numbers of layers, or none.")
        if self.dt is not None and any(not (_is_number(h) and h > 0) for h in self.dt):
            raise ValueError(f"dt={self.dt} must be positive step sizes.")

    def step_counts(self, t1: float, layers: int) -> tuple[int, ...]:
        """The sweep in numbers of steps; `layers` is 1 unless weights are piecewise constant."""
        if self.dt is not None:
            counts = []
            for h in self.dt:
                n = round(t1 / h)
                if n < 1 or abs(n * h - t1) > 1e-9 * t1:
                    raise ValueError(f"dt={h} does not divide the depth T={t1}; try dt={t1 / max(n, 1):g}.")
                counts.append(n)
        else:
            # Piecewise-constant weights start from one step per layer, the network itself.
            first = 4 if layers == 1 else layers
            counts = self.steps if self.steps is not None else tuple(first * 2**k for k in range(7))
        wrong = [n for n in counts if n % layers]
        if wrong:
            raise ValueError(
                f"steps={wrong} are not multiples of the {layers} layers, which are integrated one by one."
            )
        if len(set(counts)) < 2:
            raise ValueError(f"steps={tuple(counts)} must hold at least two different step counts to show an order.")
        return tuple(sorted(set(counts)))


@dataclasses.dataclass(frozen=True)
class Case:
    """The equation of a study, its real input embedded, and how to read the result."""

    equation: MasterEquation | DepthVarying
    base: MasterEquation
    u0: Field
    t1: float
    layers: int
    source: str


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def build_case(config: ConvergenceConfig) -> Case:
    """Real input, embedded by the Transformer, and the master equation with its weights (in float64)."""
    model, tokens, source = _model_and_input(config)
    u0 = model.embed(tokens)
    lifted = lift(model).field
    base = lifted.layer(0)
    if config.weights == "smooth":
        t1 = 2.0 if config.depth is None else config.depth
        equation = smooth_random(base, t1, key=jax.random.key(config.seed))
        return Case(equation, base, u0, t1, 1, source)
    if config.weights == "iid":
        # Residual scale 1/L over unit depth: the whole network is one step of size 1/L per layer.
        t1 = 1.0 if config.depth is None else config.depth
        return Case(DepthVarying(lifted.stacked, t1, "constant"), base, u0, t1, lifted.size, source)
    t1 = lifted.t1 if config.depth is None else config.depth
    return Case(DepthVarying(lifted.stacked, t1, "constant"), base, u0, t1, lifted.size, source)


def _model_and_input(config: ConvergenceConfig):
    if config.weights == "checkpoint":
        assert config.checkpoint is not None
        model, _ = load_model(pathlib.Path(config.checkpoint))
        if not isinstance(model, Transformer):
            raise TypeError(f"checkpoint={config.checkpoint!r} is a {type(model).__name__}; it must be a Transformer.")
        model = model.astype("float64")
        if model.architecture.norm == "post":
            raise ValueError(
                "checkpoint: a post-LN model projects after every step; choose a pre-LN, peri-LN or unnormalized one."
            )
        dataset = "listops" if model.architecture.vocab is not None else "digits"
    else:
        dataset = config.dataset
        model = Transformer(
            Architecture(
                vocab=len(listops.VOCABULARY) if dataset == "listops" else None,
                inputs=None if dataset == "listops" else 1,
                dim=config.dim,
                heads=config.heads,
                layers=config.layers,
                ffn=4 * config.dim if config.ffn is None else config.ffn,
                norm=config.norm,
                activation=config.activation,
                dtype="float64",
                param_dtype="float64",
            ),
            rngs=nnx.Rngs(config.seed),
        )
    if dataset == "listops":
        record = listops.generate(1, min_length=config.length - 1, max_length=config.length + 1, seed=config.seed)
        tokens = record.tokens[0, : config.length]
        return model, jnp.asarray(tokens), f"ListOps: {listops.to_text(np.asarray(tokens))} = {int(record.labels[0])}"
    images = digits.load()
    index = config.seed % len(images.labels)
    return (
        model,
        jnp.asarray(images.values[index], jnp.float64),
        f"digits image {index} of class {int(images.labels[index])}",
    )
