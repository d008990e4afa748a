"""The papers' experiments, each as one study: ours beside their figures and a null model's, with intervals over seeds."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.studies.papers._run import STUDIES as STUDIES
    from pdejax.studies.papers._run import reproduce as reproduce
else:
    __getattr__, __dir__ = attach(__name__)
