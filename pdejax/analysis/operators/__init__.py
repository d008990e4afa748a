"""Which operators a network's layers are: increments of hidden states regressed on those of the papers and on its own."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.operators._identify import identify_operators as identify_operators
    from pdejax.analysis.operators._identify import paper_operators as paper_operators
else:
    __getattr__, __dir__ = _attach(__name__)
