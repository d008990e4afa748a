"""The loop laboratory as a study."""

import dataclasses
from collections.abc import Callable

from pdejax._arguments import checked
from pdejax.runs._records import Result
from pdejax.studies.audit._subject import name_of, saved_settings
from pdejax.studies.loops._config import LoopsConfig
from pdejax.studies.loops._judge import judge
from pdejax.studies.loops._measure import measure
from pdejax.studies.study import Study, run


@checked
def loops(config: LoopsConfig, *, report: Callable[[str], None] | None = None) -> Result:
    """Study a network as a loop: say what becomes of its states, and for how long its answers stay.

    `report(text)` is told what is being measured. With `config.out` every input is kept as soon as it is measured, an
    interrupted study goes on, and `result.json`, `result.nc` and plots are written; `pdejax report` makes a page of the folder
    above.

    `result.rows` has every figure with its interval over inputs, `result.tables` what the loop does by kind, the sub-layers, the
    exits, and the cheap estimates of the spectral radius beside the radius; `to_xarray()` all numbers by input.

    Raises `ValueError`/`TypeError` for a network or a text that cannot be read, and `ResultError` for a folder that cannot be
    written.
    """
    study = dataclasses.replace(LOOPS, title=f"The loop of {name_of(config.network)}")
    return run(study, config, out=config.out, report=report)


LOOPS = Study(
    name="loops",
    title="The loop of a network",
    question="What does this network do if its layers are gone through again and again, and how long do its answers stay?",
    source="",
    measure=measure,
    judge=judge,
    saved=saved_settings,
    stem="result",
    headline="safe range of loops",
)
