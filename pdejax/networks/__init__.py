"""Networks: what turns tokens into logits, with its depth a `Discretization` that can be refined, measured or replaced."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.networks._layers import network as network
    from pdejax.networks._network import Network as Network
    from pdejax.networks._network import as_network as as_network
    from pdejax.networks._states import StoredStates as StoredStates
    from pdejax.networks._states import states as states
    from pdejax.networks._transports import save_transports as save_transports
    from pdejax.networks.families._checkpoint import CheckpointError as CheckpointError
    from pdejax.networks.families._load import load_pretrained as load_pretrained
else:
    __getattr__, __dir__ = _attach(__name__)
