"""What the convergence study solves: real input, embedded, and the equation with a Transformer's weights."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pdejax._depth import DepthVarying, smooth_random
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._types import Depth, Field
from pdejax.data._example import Example, encoder_of, example, example_of_file
from pdejax.models import Architecture, Transformer, lift
from pdejax.solvers import LieTrotter, Retract, get_solver
from pdejax.studies.numerics._convergence_config import ConvergenceConfig
from pdejax.terms import AbstractTerm, FieldArgs, LayerNorm, RMSNorm
from pdejax.training._kept import saved_model

_OWNER = "ConvergenceConfig"


@dataclasses.dataclass(frozen=True)
class Case:
    """The equation of a study, its real input embedded, and how to read the result.

    `dataset`: what the input is of, in a word. `block`: for post-LN, the network itself with any number of steps, which tends to
    the solution of `equation`; None for the others, whose network is `lietrotter` at one step per layer.
    """

    equation: MasterEquation | DepthVarying
    base: MasterEquation
    u0: Field
    t1: float
    layers: int
    source: str
    dataset: str
    block: Discretization | None = None


class Projected(AbstractTerm):
    r"""A term on normalized states: $D\rho(u)f(u)$, what is left of $f$ in the limit of steps u ← ρ(u + hf(u)), h → 0.

    `rho` must be a projection, ρ∘ρ = ρ: a norm without a learned scale and bias.
    """

    inner: AbstractTerm
    rho: LayerNorm | RMSNorm

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        return jax.jvp(self.rho, (u,), (self.inner(t, u, args),))[1]

    @property
    def strength(self) -> Array:
        """That of the term."""
        return self.inner.strength  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def smoothness(self) -> float:
        return self.inner.smoothness

    def damping(self) -> Float[Array, ""]:
        return self.inner.damping()

    def check(self, n: int, d: int) -> None:
        self.inner.check(n, d)


def build_case(config: ConvergenceConfig) -> Case:
    """Real input, embedded by the Transformer, and the master equation with its weights (in float64)."""
    model, found, dataset = _model_and_input(config)
    u0 = model.embed(jnp.asarray(found.tokens if found.vocab is not None else np.asarray(found.tokens, np.float64)))
    lifted = lift(model)
    raw, projected = lifted.field, None
    if model.architecture.norm == "post":
        rho = _projection(config, model)
        u0, projected = rho(u0), lambda equation: _on_normalized(equation, rho)
    if config.weights == "smooth":
        t1, key = config.own_depth(), jax.random.key(config.seed)
        base = raw.layer(0)
        equation = smooth_random(base if projected is None else projected(base), t1, key=key)
        # The waves of the same key: the weights are those of the equation, without the projection.
        own, layers = smooth_random(base, t1, key=key), 1
    else:
        # Independent layers at residual scale 1/L over unit depth: the whole network is one step of size 1/L per layer.
        t1 = config.own_depth() if config.weights == "iid" else raw.t1 if config.depth is None else float(config.depth)
        own, layers = DepthVarying(raw.stacked, t1, "constant"), raw.size
        equation = own
        if projected is not None:
            stacked = eqx.filter_vmap(projected)(raw.stacked)
            equation = DepthVarying(stacked, t1, "constant")
    block = None
    if projected is not None:
        steps = Retract(get_solver("euler"), rho)
        block = Discretization(own, LieTrotter((steps, steps)), t1=t1, steps=layers)
    base = raw.layer(0) if projected is None else projected(raw.layer(0))
    return Case(equation, base, u0, t1, layers, found.source, dataset, block)


def _on_normalized(equation: MasterEquation, rho: LayerNorm | RMSNorm) -> MasterEquation:
    return MasterEquation(**{name: Projected(term, rho) for name, term in equation.items()})


def _projection(config: ConvergenceConfig, model: Transformer) -> LayerNorm | RMSNorm:
    """The norm of a post-LN block. Raises `ValueError` for one with a learned scale or bias, of which there is no limit."""
    weights = model.layer_weights()
    scales = [value for name in ("norm1", "norm2") for key, value in weights[name].items() if key == "scale"]
    biases = [value for name in ("norm1", "norm2") for key, value in weights[name].items() if key == "bias"]
    learned = any(bool(jnp.any(x != 1)) for x in scales) or any(bool(jnp.any(x != 0)) for x in biases if x is not None)
    if learned:
        raise ValueError(
            f"{_OWNER}: checkpoint={config.checkpoint!r} is a post-LN model with a learned scale or bias, which acts once per "
            "step however short the step is: there is no limit of small steps. Choose another norm, or norm='post' "
            "with weights='smooth' or 'iid'."
        )
    kind = LayerNorm if model.architecture.norm_type == "layernorm" else RMSNorm
    norm = kind(model.architecture.dim, eps=model.architecture.norm_eps)
    return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, norm)


def _model_and_input(config: ConvergenceConfig) -> tuple[Transformer, Example, str]:
    """The Transformer in float64, its input, and what the input is of, in a word."""
    if config.weights != "checkpoint":
        found = _given(config, config.dataset, config.data)
        return _fresh(config, found), found, config.dataset or pathlib.Path(config.file or "").name
    assert config.checkpoint is not None
    model, trained, _ = saved_model(_OWNER, "checkpoint", config.checkpoint)
    if not isinstance(model, Transformer):
        raise TypeError(
            f"{_OWNER}: checkpoint={config.checkpoint!r} is a {type(model).__name__}; it must be a Transformer."
        )
    own = None if trained is None else trained.dataset
    dataset = (
        config.dataset if config.dataset is not None or config.file is not None else own or _guessed(config, model)
    )
    # Options of a run are for its own data set; those that are given come on top.
    options = dict(trained.data) if trained is not None and own == (dataset or own) else {}
    encode = None
    if config.file is not None and model.architecture.vocab is not None and own is not None:
        encode = _lazily(own, options | dict(config.data))
    found = _given(config, dataset, options | dict(config.data), encode)
    _check_fits(config, model, found)
    return model.astype("float64"), found, dataset or pathlib.Path(config.file or "").name


def _given(config: ConvergenceConfig, dataset: str | None, options: Mapping[str, Any], encode: Any = None) -> Example:
    if config.file is not None:
        return example_of_file(config.file, length=config.length, encode=encode, owner=_OWNER)
    assert dataset is not None
    return example(dataset, index=config.seed, length=config.length, options=options, owner=_OWNER)


def _lazily(dataset: str, options: Mapping[str, Any]):
    """The run's own reading of a text, whose words are looked up only for one."""
    return lambda text: encoder_of(dataset, options, _OWNER)(text)


def _guessed(config: ConvergenceConfig, model: Transformer) -> str:
    """The data set of a model that does not say; `ValueError` where there is none that fits."""
    a = model.architecture
    if a.vocab == 16 or a.inputs == 1:
        return "listops" if a.vocab else "digits"
    ends = f"{a.vocab} token ids" if a.vocab else f"{a.inputs} features"
    raise ValueError(
        f"{_OWNER}: checkpoint={config.checkpoint!r} does not say what it was trained on, and takes {ends}; give dataset=, with "
        "its options in data=, or file=."
    )


def _check_fits(config: ConvergenceConfig, model: Transformer, found: Example) -> None:
    a, features = model.architecture, found.tokens.shape[-1] if found.tokens.ndim == 2 else None
    wanted = f"token ids below {a.vocab}" if a.vocab is not None else f"values of {a.inputs} features"
    ids = found.tokens.dtype.kind in "iu" and found.tokens.ndim == 1
    fits = ids and int(found.tokens.max()) < a.vocab if a.vocab is not None else features == a.inputs
    if not fits:
        raise ValueError(
            f"{_OWNER}: checkpoint={config.checkpoint!r} takes {wanted}, and the input is {found.source}: "
            f"{found.tokens.dtype} {found.tokens.shape}. Choose another dataset, its options in data=, or file=."
        )


def _fresh(config: ConvergenceConfig, found: Example) -> Transformer:
    return Transformer(
        Architecture(
            vocab=found.vocab,
            inputs=None if found.vocab is not None else found.tokens.shape[-1],
            dim=config.dim,
            heads=config.heads,
            layers=config.layers,
            ffn=4 * config.dim if config.ffn is None else config.ffn,
            norm=config.norm,
            norm_type=config.norm_type,
            activation=config.activation,
            dtype="float64",
            param_dtype="float64",
        ),
        rngs=nnx.Rngs(config.seed),
    )


def fingerprint(config: ConvergenceConfig) -> dict[str, str]:
    """Digests of the checkpoint's numbers and of the file's bytes, by which kept parts know that they are of the same."""
    found = {}
    if config.checkpoint is not None:
        total = hashlib.sha256()
        for leaf in jax.tree.leaves(saved_model(_OWNER, "checkpoint", config.checkpoint).model.parameters()):
            total.update(np.asarray(leaf).tobytes())
        found["checkpoint_sha256"] = total.hexdigest()
    if config.file is not None and pathlib.Path(config.file).is_file():
        found["file_sha256"] = hashlib.sha256(pathlib.Path(config.file).read_bytes()).hexdigest()
    return found
