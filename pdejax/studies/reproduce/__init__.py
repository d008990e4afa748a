"""The papers' experiments, each as one study: ours beside their figures and a null model's, with intervals over seeds."""

from pdejax.studies.reproduce._models import Models as Models
from pdejax.studies.reproduce._registry import STUDIES as STUDIES
from pdejax.studies.reproduce._run import StudyResult as StudyResult
from pdejax.studies.reproduce._run import reproduce as reproduce
from pdejax.studies.reproduce._run import run_study as run_study
from pdejax.studies.reproduce._study import Conclusion as Conclusion
from pdejax.studies.reproduce._study import Picture as Picture
from pdejax.studies.reproduce._study import Row as Row
from pdejax.studies.reproduce._study import Settings as Settings
from pdejax.studies.reproduce._study import Study as Study
from pdejax.studies.reproduce._study import Values as Values
from pdejax.studies.reproduce._study import over_seeds as over_seeds
from pdejax.studies.reproduce._study import row as row
from pdejax.studies.reproduce._study import stacked as stacked
