"""All studies, in the order of the papers."""

from collections.abc import Mapping

from pdejax.studies.papers._alignment import ALIGNMENT
from pdejax.studies.papers._architectures import ARCHITECTURES
from pdejax.studies.papers._attention import ATTENTION, ATTENTION_IMAGES
from pdejax.studies.papers._bottleneck import BOTTLENECK
from pdejax.studies.papers._continuum import CONTINUUM
from pdejax.studies.papers._discretization import DISCRETIZATION
from pdejax.studies.papers._gradients import GRADIENTS
from pdejax.studies.papers._information import INFORMATION
from pdejax.studies.papers._information_flow import INFORMATION_FLOW
from pdejax.studies.papers._layernorm import LAYERNORM
from pdejax.studies.papers._perturbation import PERTURBATION
from pdejax.studies.papers._residual import RESIDUAL_STUDY
from pdejax.studies.papers._spectral import SPECTRAL
from pdejax.studies.study import Study

_ALL = (
    *(INFORMATION_FLOW, ATTENTION_IMAGES, BOTTLENECK, GRADIENTS, PERTURBATION),  # v1's five experiments
    *(ALIGNMENT, RESIDUAL_STUDY, LAYERNORM, ATTENTION, SPECTRAL, INFORMATION),  # v2
    *(CONTINUUM, DISCRETIZATION, ARCHITECTURES),  # what v2 leaves to be checked
)
STUDIES: Mapping[str, Study] = {study.name: study for study in _ALL}
