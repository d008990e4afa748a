"""The loop laboratory: what a network does when its layers are gone through again and again."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.studies.loops._config import LoopsConfig as LoopsConfig
    from pdejax.studies.loops._loops import loops as loops
else:
    __getattr__, __dir__ = _attach(__name__)
