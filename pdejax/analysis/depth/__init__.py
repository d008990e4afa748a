"""What the depth of a network is: its layers run in any order and in any number of steps, taken out, and beside nulls."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.depth._layers import layer_field as layer_field
    from pdejax.analysis.depth._layers import refine_layers as refine_layers
    from pdejax.analysis.depth._layers import run_layers as run_layers
    from pdejax.analysis.depth._nulls import branch_sizes as branch_sizes
    from pdejax.analysis.depth._nulls import matched_null as matched_null
    from pdejax.analysis.depth._nulls import shuffle_layers as shuffle_layers
    from pdejax.analysis.depth._surgery import layer_surgery as layer_surgery
else:
    __getattr__, __dir__ = _attach(__name__)
