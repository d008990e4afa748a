"""The Flax Transformer and its checkpoints, and the trainable PDE simulators beside it."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.models._architecture import Architecture as Architecture
    from pdejax.models._multilayer import MultilayerSimulator as MultilayerSimulator
    from pdejax.models._observe import observe as observe
    from pdejax.models._pairing import lift as lift
    from pdejax.models._pairing import pair as pair
    from pdejax.models._pairing import untrained_field as untrained_field
    from pdejax.models._saving import load_model as load_model
    from pdejax.models._saving import save_model as save_model
    from pdejax.models._simulator import Simulator as Simulator
    from pdejax.models._simulator_config import MultilayerSimulatorConfig as MultilayerSimulatorConfig
    from pdejax.models._simulator_config import SimulatorConfig as SimulatorConfig
    from pdejax.models._transformer import Transformer as Transformer
else:
    __getattr__, __dir__ = _attach(__name__)
