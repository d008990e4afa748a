"""The terms of the master equation, one per file."""

from pdejax.terms._attention import Attention as Attention
from pdejax.terms._base import AbstractTerm as AbstractTerm, FieldArgs as FieldArgs
from pdejax.terms._diffusion import Diffusion as Diffusion, EffectiveDiffusion as EffectiveDiffusion
from pdejax.terms._exchange import Exchange as Exchange
from pdejax.terms._kernels import attend as attend
from pdejax.terms._normalization import (
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
    SphereProjection as SphereProjection,
)
from pdejax.terms._reaction import FeedForward as FeedForward
from pdejax.terms._stabilization import (
    LayerNormRelaxation as LayerNormRelaxation,
    LinearDamping as LinearDamping,
    SpatialNorm as SpatialNorm,
)
