"""The Flax Transformer and its checkpoints, and the trainable PDE simulators beside it."""

from pdejax.models._checkpoint import load_checkpoint as load_checkpoint
from pdejax.models._checkpoint import save_checkpoint as save_checkpoint
from pdejax.models._config import TransformerConfig as TransformerConfig
from pdejax.models._lift import lift as lift
from pdejax.models._lift import native_solver as native_solver
from pdejax.models._multilayer import MultilayerSimulator as MultilayerSimulator
from pdejax.models._multilayer_config import MultilayerSimulatorConfig as MultilayerSimulatorConfig
from pdejax.models._pairing import distilled_simulator as distilled_simulator
from pdejax.models._pairing import independent_simulator as independent_simulator
from pdejax.models._pairing import pair as pair
from pdejax.models._pairing import shared_simulator as shared_simulator
from pdejax.models._pairing import untrained_field as untrained_field
from pdejax.models._simulator import Simulator as Simulator
from pdejax.models._simulator_config import SimulatorConfig as SimulatorConfig
from pdejax.models._transformer import Transformer as Transformer
