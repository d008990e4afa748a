"""The papers' experiments, each as one study: ours beside their figures and a null model's, with intervals over seeds."""

from pdejax.studies.papers._models import Models as Models
from pdejax.studies.papers._registry import STUDIES as STUDIES
from pdejax.studies.papers._run import StudyResult as StudyResult
from pdejax.studies.papers._run import reproduce as reproduce
from pdejax.studies.papers._run import run_study as run_study
from pdejax.studies.papers._study import Conclusion as Conclusion
from pdejax.studies.papers._study import Picture as Picture
from pdejax.studies.papers._study import Row as Row
from pdejax.studies.papers._study import Settings as Settings
from pdejax.studies.papers._study import Study as Study
from pdejax.studies.papers._study import Values as Values
from pdejax.studies.papers._study import over_seeds as over_seeds
from pdejax.studies.papers._study import row as row
from pdejax.studies.papers._study import stacked as stacked
