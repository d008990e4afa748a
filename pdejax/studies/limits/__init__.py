"""Which limit: depth coordinate checks with planted recipes, closures, slow clustering, and noise that tokens share."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.studies.limits._config import LimitsConfig as LimitsConfig
    from pdejax.studies.limits._limits import limits as limits
else:
    __getattr__, __dir__ = attach(__name__)
