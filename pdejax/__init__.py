"""pdejax: a Transformer is a vector field, a solver and a step."""

from importlib.metadata import PackageNotFoundError, version

from pdejax import solvers as solvers
from pdejax._depth import DepthVarying as DepthVarying, LayerStack as LayerStack, iid as iid, smooth_random as smooth_random
from pdejax._equation import MasterEquation as MasterEquation, MultilayerEquation as MultilayerEquation
from pdejax._simulate import DivergenceError as DivergenceError, simulate as simulate
from pdejax._trajectory import Stats as Stats, Trajectory as Trajectory
from pdejax.models import (
    Transformer as Transformer,
    TransformerConfig as TransformerConfig,
    lift as lift,
    load_checkpoint as load_checkpoint,
    native_solver as native_solver,
    save_checkpoint as save_checkpoint,
)
from pdejax.solvers import Grid as Grid, Laplacian as Laplacian
from pdejax.terms import (
    Attention as Attention,
    Diffusion as Diffusion,
    EffectiveDiffusion as EffectiveDiffusion,
    Exchange as Exchange,
    FeedForward as FeedForward,
    FieldArgs as FieldArgs,
    LayerNorm as LayerNorm,
    LayerNormRelaxation as LayerNormRelaxation,
    LinearDamping as LinearDamping,
    RMSNorm as RMSNorm,
    SpatialNorm as SpatialNorm,
    SphereProjection as SphereProjection,
)

try:
    __version__ = version("pdejax")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"
