"""The audit of a network as a study."""

import dataclasses
from collections.abc import Callable

from pdejax._arguments import checked
from pdejax.runs._records import Result
from pdejax.studies.audit._config import AuditConfig
from pdejax.studies.audit._judge import judge
from pdejax.studies.audit._measure import measure
from pdejax.studies.audit._subject import name_of, saved_settings
from pdejax.studies.study import Study, run


@checked
def audit(config: AuditConfig, *, report: Callable[[str], None] | None = None) -> Result:
    """Audit a network: say what its depth is.

    `report(text)` is told what is being measured. With `config.out` every section is kept as soon as it is measured, an
    interrupted audit goes on, and `result.json`, `result.nc` and plots are written; `pdejax report` makes a page of the folder
    above.

    Sections: layers as steps of a solver against the network; refinement of the step, of all layers and of windows, by several
    schemes; weights as a function of depth; layers skipped, exchanged and repeated; Jacobians and Lyapunov exponents; tokens by
    depth; operators that the layers are. Nulls: untrained networks of the same branch sizes, layers shuffled, weights
    shuffled within a layer. `result.rows` has every figure with its interval over sequences and its null, `to_xarray()` all
    numbers by sequence.

    Raises `ValueError`/`TypeError` for a network or a text that cannot be read, and `ResultError` for a folder that cannot be
    written.
    """
    return run(study_of(config), config, out=config.out, report=report)


def study_of(config: AuditConfig) -> Study:
    """The study of one network, which has its name and its precision."""
    return dataclasses.replace(
        AUDIT, title=f"The depth of {name_of(config.network)}", double=config.precision == "float64"
    )


AUDIT = Study(
    name="audit",
    title="The depth of a network",
    question="What is the depth of this network: steps of a solver, near a continuum, of which operators?",
    source="",
    measure=measure,
    judge=judge,
    saved=saved_settings,
    stem="result",
    double=False,
)
