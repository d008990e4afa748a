"""The equation and the real input of a convergence study."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdejax._depth import DepthVarying, smooth_random
from pdejax._equation import MasterEquation
from pdejax._types import Field
from pdejax.data import digits, listops
from pdejax.models import Architecture, Transformer, lift, load_model
from pdejax.studies.numerics._convergence_config import ConvergenceConfig


@dataclasses.dataclass(frozen=True)
class Case:
    """The equation of a study, its real input embedded, and how to read the result."""

    equation: MasterEquation | DepthVarying
    base: MasterEquation
    u0: Field
    t1: float
    layers: int
    source: str


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
