"""The experiments of the papers by name, and running one or all."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

from pdejax import _check as check
from pdejax._arguments import checked
from pdejax.runs._files import check_folder
from pdejax.runs._parts import kept_programs
from pdejax.runs._records import Result
from pdejax.studies.papers._alignment import ALIGNMENT, SPECTRAL
from pdejax.studies.papers._alignment_step import ALIGNMENT_STEP
from pdejax.studies.papers._architectures import ARCHITECTURES
from pdejax.studies.papers._attention import ATTENTION, ATTENTION_IMAGES
from pdejax.studies.papers._bottleneck import BOTTLENECK
from pdejax.studies.papers._components import RESIDUAL_STUDY
from pdejax.studies.papers._discretization import CONTINUUM, DISCRETIZATION
from pdejax.studies.papers._distillation import DISTILLATION
from pdejax.studies.papers._information import INFORMATION
from pdejax.studies.papers._information_flow import INFORMATION_FLOW
from pdejax.studies.papers._layernorm import LAYERNORM
from pdejax.studies.papers._paper_size import PAPER_SIZE
from pdejax.studies.papers._readings import READINGS
from pdejax.studies.papers._text import GRADIENTS, PERTURBATION
from pdejax.studies.study import Study, run

_ALL = (
    *(INFORMATION_FLOW, ATTENTION_IMAGES, BOTTLENECK, GRADIENTS, PERTURBATION),  # v1's five experiments
    *(ALIGNMENT, DISTILLATION, RESIDUAL_STUDY, LAYERNORM, ATTENTION, SPECTRAL, INFORMATION),  # v2
    *(
        READINGS,
        ALIGNMENT_STEP,
        PAPER_SIZE,
        CONTINUUM,
        DISCRETIZATION,
        ARCHITECTURES,
    ),  # what v2 leaves unsaid or to be checked
)
STUDIES: Mapping[str, Study] = {study.name: study for study in _ALL}


@checked
def reproduce(
    studies: Sequence[str] | None = None,
    *,
    preset: str = "quick",
    seeds: int | None = None,
    out: str | pathlib.Path = "out/reproduce",
    report: Callable[[str], None] | None = None,
    done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run studies of the papers and keep their results in `out/<study>/`: `result.json`, `result.nc`, pictures.

    - `studies`: names of [`STUDIES`][pdejax.studies.papers.STUDIES]; default all. `preset`: `"quick"` (two cores,
      minutes), `"standard"` (larger, with five seeds) or `"paper"` (the papers' sizes). `seeds`: how many,
      default what the settings say.
    - `report` takes a line about what is being done; `done` each result.

    What is measured is kept seed by seed, models by their configuration, and compiled programs in `out/programs` (unless JAX
    has a compilation cache already): the same call goes on from there, and studies that train the same model share it.
    Results of other settings, versions or devices are never mixed in.

    Raises `ValueError` for unknown names, a preset that there is not or fewer than one seed; `ResultError` where `out` cannot be
    written.
    """
    names = [check.choice("reproduce", "studies", name, STUDIES) for name in (STUDIES if studies is None else studies)]
    chosen = None if seeds is None else range(check.integer("reproduce", "seeds", seeds))
    configs = {name: STUDIES[name].preset(preset) for name in names}
    folder = pathlib.Path(out)
    check_folder(folder)
    results = []
    with kept_programs(folder / "programs"):
        for name in names:
            result = run(
                STUDIES[name],
                configs[name],
                out=folder / name,
                seeds=chosen,
                preset=preset,
                shared=folder,
                report=report,
            )
            results.append(result)
            if done is not None:
                done(result)
    return results
