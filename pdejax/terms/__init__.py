"""The terms of the master equation, one per file."""

from pdejax.terms._attention import Attention as Attention
from pdejax.terms._base import AbstractTerm as AbstractTerm
from pdejax.terms._base import FieldArgs as FieldArgs
from pdejax.terms._base import Linear as Linear
from pdejax.terms._diffusion import Diffusion as Diffusion
from pdejax.terms._diffusion import EffectiveDiffusion as EffectiveDiffusion
from pdejax.terms._exchange import Exchange as Exchange
from pdejax.terms._kernels import attend as attend
from pdejax.terms._normalization import LayerNorm as LayerNorm
from pdejax.terms._normalization import RMSNorm as RMSNorm
from pdejax.terms._normalization import SphereProjection as SphereProjection
from pdejax.terms._reaction import FeedForward as FeedForward
from pdejax.terms._rotary import Rotary as Rotary
from pdejax.terms._stabilization import LayerNormRelaxation as LayerNormRelaxation
from pdejax.terms._stabilization import LinearDamping as LinearDamping
from pdejax.terms._stabilization import SpatialNorm as SpatialNorm
