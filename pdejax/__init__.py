"""pdejax: a Transformer is a vector field, a solver and a step.

Every name is loaded when it is first used; the lines under `TYPE_CHECKING` are the table of them (`pdejax._lazy`).
"""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax import analysis as analysis
    from pdejax import data as data
    from pdejax import exact as exact
    from pdejax import models as models
    from pdejax import plot as plot
    from pdejax import runs as runs
    from pdejax import solvers as solvers
    from pdejax import studies as studies
    from pdejax import terms as terms
    from pdejax import training as training
    from pdejax._bootstrap import bootstrap as bootstrap
    from pdejax._bootstrap import over_seeds as over_seeds
    from pdejax._bootstrap import permutation_test as permutation_test
    from pdejax._depth import DepthVarying as DepthVarying
    from pdejax._depth import LayerStack as LayerStack
    from pdejax._depth import iid as iid
    from pdejax._depth import smooth_random as smooth_random
    from pdejax._discretization import Discretization as Discretization
    from pdejax._equation import MasterEquation as MasterEquation
    from pdejax._equation import MultilayerEquation as MultilayerEquation
    from pdejax._figure import Figure as Figure
    from pdejax._parallel import simulate_in_parallel as simulate_in_parallel
    from pdejax._sharded import shard_tokens as shard_tokens
    from pdejax._simulate import DivergenceError as DivergenceError
    from pdejax._simulate import simulate as simulate
    from pdejax._trajectory import Stats as Stats
    from pdejax._trajectory import Trajectory as Trajectory
    from pdejax.models import Architecture as Architecture
    from pdejax.models import MultilayerSimulator as MultilayerSimulator
    from pdejax.models import MultilayerSimulatorConfig as MultilayerSimulatorConfig
    from pdejax.models import Simulator as Simulator
    from pdejax.models import SimulatorConfig as SimulatorConfig
    from pdejax.models import Transformer as Transformer
    from pdejax.models import lift as lift
    from pdejax.models import load_model as load_model
    from pdejax.models import observe as observe
    from pdejax.models import pair as pair
    from pdejax.models import save_model as save_model
    from pdejax.networks import Network as Network
    from pdejax.networks import as_network as as_network
    from pdejax.networks import load_pretrained as load_pretrained
    from pdejax.networks import network as network
    from pdejax.networks import states as states
    from pdejax.solvers import Grid as Grid
    from pdejax.solvers import Laplacian as Laplacian
    from pdejax.terms import Attention as Attention
    from pdejax.terms import Diffusion as Diffusion
    from pdejax.terms import EffectiveDiffusion as EffectiveDiffusion
    from pdejax.terms import Exchange as Exchange
    from pdejax.terms import FeedForward as FeedForward
    from pdejax.terms import FieldArgs as FieldArgs
    from pdejax.terms import LayerNorm as LayerNorm
    from pdejax.terms import LayerNormRelaxation as LayerNormRelaxation
    from pdejax.terms import LinearDamping as LinearDamping
    from pdejax.terms import RMSNorm as RMSNorm
    from pdejax.terms import SpatialNorm as SpatialNorm
    from pdejax.terms import SphereProjection as SphereProjection

    __version__: str
else:
    _get, __dir__ = _attach(__name__)

    def __getattr__(name: str):
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("pdejax")
            except PackageNotFoundError:  # a bare checkout
                return "0+unknown"
        return _get(name)
