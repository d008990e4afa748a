"""An experiment of the papers as a study: seed by seed, with the trained models that experiments share."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from pdejax._bootstrap import over_seeds
from pdejax.runs._parts import Parts
from pdejax.runs._records import Row
from pdejax.studies.papers._models import Models
from pdejax.studies.papers._settings import Settings
from pdejax.studies.study import Evidence, Judgement, Study


def experiment(
    *,
    name: str,
    title: str,
    question: str,
    source: str,
    presets: Mapping[str, Settings],
    measure: Callable[[Settings, int, Models], Evidence],
    judge: Callable[[Settings, Sequence[Evidence]], Judgement],
    pairing: str | None = None,
    resolve: Callable[[Settings], Settings] | None = None,
) -> Study:
    """Make a study of an experiment.

    - `presets`: its settings as `"quick"` (two cores, minutes) and `"paper"` (the papers' sizes). `resolve(settings)`: what
      becomes of settings on this machine, such as without the text.
    - `measure(settings, seed, models)` gives arrays of numbers, kept seed by seed; models are shared between experiments.
    - `judge(settings, evidence)`, `pairing`: as in [`Study`][pdejax.studies.Study].
    """

    def one_seed(settings: Settings, seed: int, parts: Parts) -> Evidence:
        def measured() -> Evidence:
            parts.say(f"{name}: seed {seed}")
            with _folder(parts) as folder:
                return measure(settings, seed, Models(folder, parts.say))

        return parts.arrays(f"seed-{seed}", measured)

    return Study(
        name=name,
        title=title,
        question=question,
        source=source,
        pairing=pairing,
        presets=presets,
        resolve=resolve,
        measure=one_seed,
        judge=judge,
        seeds=lambda settings: range(settings.seeds),
        stem="result",
        double=False,
    )


@contextlib.contextmanager
def _folder(parts: Parts) -> Iterator[pathlib.Path]:
    """Where models are kept: beside the experiments, or nowhere if nothing is to be kept."""
    if parts.shared is not None:
        yield parts.shared / "models"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def row(
    quantity: str,
    ours: Sequence[float] | np.ndarray,
    *,
    paper: str | None = None,
    null: Sequence[float] | np.ndarray | None = None,
    null_name: str | None = None,
    unit: str = "",
    note: str = "",
) -> Row:
    """Make a line of the table from the values of each seed."""
    beside = () if null is None else tuple(float(x) for x in null)
    return Row(
        quantity,
        over_seeds(np.asarray(ours, float)),
        tuple(float(x) for x in ours),
        unit=unit,
        paper=paper,
        null=over_seeds(beside) if beside else None,
        null_seeds=beside,
        null_name=null_name if beside else None,
        note=note,
    )


def stacked(evidence: Sequence[Evidence], name: str) -> np.ndarray:
    """Return the array `name` of all seeds, seeds in front."""
    return np.stack([np.asarray(found[name]) for found in evidence])
