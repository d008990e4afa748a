"""The Flax Transformer and its checkpoints."""

from pdejax.models._checkpoint import load_checkpoint as load_checkpoint
from pdejax.models._checkpoint import save_checkpoint as save_checkpoint
from pdejax.models._config import TransformerConfig as TransformerConfig
from pdejax.models._lift import lift as lift
from pdejax.models._lift import native_solver as native_solver
from pdejax.models._transformer import Transformer as Transformer
