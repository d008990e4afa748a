"""pdejax: a Transformer is a vector field, a solver and a step."""

from importlib.metadata import PackageNotFoundError, version

from pdejax import analysis as analysis
from pdejax import data as data
from pdejax import exact as exact
from pdejax import plot as plot
from pdejax import solvers as solvers
from pdejax import terms as terms
from pdejax import training as training
from pdejax._depth import (
    DepthVarying as DepthVarying,
)
from pdejax._depth import (
    LayerStack as LayerStack,
)
from pdejax._depth import (
    iid as iid,
)
from pdejax._depth import (
    smooth_random as smooth_random,
)
from pdejax._equation import MasterEquation as MasterEquation
from pdejax._equation import MultilayerEquation as MultilayerEquation
from pdejax._simulate import DivergenceError as DivergenceError
from pdejax._simulate import simulate as simulate
from pdejax._trajectory import Stats as Stats
from pdejax._trajectory import Trajectory as Trajectory
from pdejax.models import (
    MultilayerSimulator as MultilayerSimulator,
)
from pdejax.models import (
    MultilayerSimulatorConfig as MultilayerSimulatorConfig,
)
from pdejax.models import (
    Simulator as Simulator,
)
from pdejax.models import (
    SimulatorConfig as SimulatorConfig,
)
from pdejax.models import (
    Transformer as Transformer,
)
from pdejax.models import (
    TransformerConfig as TransformerConfig,
)
from pdejax.models import (
    lift as lift,
)
from pdejax.models import (
    load_checkpoint as load_checkpoint,
)
from pdejax.models import (
    native_solver as native_solver,
)
from pdejax.models import (
    pair as pair,
)
from pdejax.models import (
    save_checkpoint as save_checkpoint,
)
from pdejax.solvers import Grid as Grid
from pdejax.solvers import Laplacian as Laplacian
from pdejax.terms import (
    Attention as Attention,
)
from pdejax.terms import (
    Diffusion as Diffusion,
)
from pdejax.terms import (
    EffectiveDiffusion as EffectiveDiffusion,
)
from pdejax.terms import (
    Exchange as Exchange,
)
from pdejax.terms import (
    FeedForward as FeedForward,
)
from pdejax.terms import (
    FieldArgs as FieldArgs,
)
from pdejax.terms import (
    LayerNorm as LayerNorm,
)
from pdejax.terms import (
    LayerNormRelaxation as LayerNormRelaxation,
)
from pdejax.terms import (
    LinearDamping as LinearDamping,
)
from pdejax.terms import (
    RMSNorm as RMSNorm,
)
from pdejax.terms import (
    SpatialNorm as SpatialNorm,
)
from pdejax.terms import (
    SphereProjection as SphereProjection,
)


def __getattr__(name: str):
    # Studies bring xarray with them, which most scripts do not need: loaded when first asked for.
    if name == "studies":
        import importlib

        return importlib.import_module("pdejax.studies")
    raise AttributeError(f"module 'pdejax' has no attribute {name!r}")


try:
    __version__ = version("pdejax")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"
