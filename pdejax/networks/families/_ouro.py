"""Ouro: a looped decoder, a stack of L layers gone through k times (Zhu et al., arXiv 2510.25741).

Blocks are those of Llama with a second norm after attention and after the feed-forward network (sandwich norms); the last norm is
applied after every pass, and so belongs to the solver: the retraction of every L-th step. The gate that ends the loop early for
single tokens is left out: with its threshold of 1, the released one, all k passes are taken.
"""

import dataclasses

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from pdejax._depth import DepthVarying, LayerStack
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._types import Field
from pdejax.networks._network import Network
from pdejax.networks.families._assemble import rms_norm
from pdejax.networks.families._config import Config
from pdejax.networks.families._family import Family, Tensor, Weights, vector
from pdejax.networks.families._llama import (
    COPIES,
    IRRELEVANT,
    UNUSED,
    Decoder,
    block_tensors,
    build_ends,
    build_terms,
    end_tensors,
    read_decoder,
    read_windows,
)
from pdejax.solvers import LieTrotter, Retract
from pdejax.solvers._written import one_line
from pdejax.terms import RMSNorm


@dataclasses.dataclass(frozen=True)
class Looped:
    """A decoder and how often its layers are gone through."""

    decoder: Decoder
    passes: int


class NormAtEnd(eqx.Module):
    """A norm that acts where `here` is true: at the end of a pass. One layer's, or those of all layers stacked."""

    norm: RMSNorm
    here: Bool[Array, "*layers"]

    __repr__ = one_line

    def __call__(self, u: Field) -> Field:
        return jnp.where(self.here, self.norm(u), u)


def _settings(config: Config) -> Looped:
    # Below 1 single tokens leave the loop early.
    config.only("early_exit_threshold", 1.0, 1)
    config.only("early_exit_step", None)
    passes = config.integer("total_ut_steps", 4)
    return Looped(read_decoder(config, windows=read_windows(config)), passes)


def _tensors(e: Looped) -> list[Tensor]:
    d = e.decoder
    norms = (
        ("input_layernorm", "attention.norm"),
        ("input_layernorm_2", "attention.norm_out"),
        ("post_attention_layernorm", "feed_forward.norm"),
        ("post_attention_layernorm_2", "feed_forward.norm_out"),
    )
    lines = [vector(f"layers.{{l}}.{name}.weight", f"{place}.scale", d.dim) for name, place in norms]
    return [*end_tensors(d), *block_tensors(d), *lines]


def _build(e: Looped, weights: Weights, dtype: str) -> Network:
    d, count = e.decoder, e.passes * e.decoder.layers
    equation = MasterEquation(*build_terms(d, weights, norm_out=True))
    field = DepthVarying(equation, float(count), passes=e.passes)
    scale = np.broadcast_to(weights["norm.scale"], (count, d.dim))
    ends = jnp.asarray((np.arange(count) + 1) % d.layers == 0)
    after = LayerStack(NormAtEnd(rms_norm(d.dim, d.eps, {"scale": scale}, count), ends))
    solver = LieTrotter((diffrax.Euler(), Retract(diffrax.Euler(), after)))
    embed, head = build_ends(d, weights, dtype, None)
    return Network(embed, Discretization(field, solver, t1=float(count), steps=count), head, layers=count)


FAMILY = Family(
    "Ouro",
    _settings,
    _tensors,
    _build,
    lambda e: e.decoder.layers,
    causal=True,
    prefixes=("model.",),
    unused=UNUSED | {r"early_exit_gate\..*": "the gate that ends the loop early, which a threshold of 1 leaves open"},
    copies=COPIES,
    irrelevant=IRRELEVANT,
)
