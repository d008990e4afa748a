"""All studies, in the order of the papers."""

from collections.abc import Mapping

from pdejax.studies.reproduce._alignment import ALIGNMENT
from pdejax.studies.reproduce._architectures import ARCHITECTURES
from pdejax.studies.reproduce._attention import ATTENTION, ATTENTION_IMAGES
from pdejax.studies.reproduce._bottleneck import BOTTLENECK
from pdejax.studies.reproduce._continuum import CONTINUUM
from pdejax.studies.reproduce._discretization import DISCRETIZATION
from pdejax.studies.reproduce._gradients import GRADIENTS
from pdejax.studies.reproduce._information import INFORMATION
from pdejax.studies.reproduce._information_flow import INFORMATION_FLOW
from pdejax.studies.reproduce._layernorm import LAYERNORM
from pdejax.studies.reproduce._perturbation import PERTURBATION
from pdejax.studies.reproduce._residual import RESIDUAL_STUDY
from pdejax.studies.reproduce._spectral import SPECTRAL
from pdejax.studies.reproduce._study import Study

_ALL = (
    *(INFORMATION_FLOW, ATTENTION_IMAGES, BOTTLENECK, GRADIENTS, PERTURBATION),  # v1's five experiments
    *(ALIGNMENT, RESIDUAL_STUDY, LAYERNORM, ATTENTION, SPECTRAL, INFORMATION),  # v2
    *(CONTINUUM, DISCRETIZATION, ARCHITECTURES),  # what v2 leaves to be checked
)
STUDIES: Mapping[str, Study] = {study.name: study for study in _ALL}
