"""A study over a grid of its settings."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from pdejax import _check as check
from pdejax._arguments import checked
from pdejax.runs._code import code_digest
from pdejax.runs._parts import Parts
from pdejax.runs.sweep import Sweep
from pdejax.studies.study import Evidence, Study


@checked
def study_sweep(
    study: Study,
    config: Any,
    axes: Mapping[str, Sequence[Any]],
    read: Callable[[Evidence], Mapping[str, Any]],
    *,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    chunk: int = 1,
) -> Sweep:
    """Return a sweep of a study: at every point of `axes`, fields of `config`, and for every seed the study is measured.

    - `read(evidence)`: the numbers to keep of what `study.measure` gives, by name; `dims` and `coords` as in a `Sweep`.
    - `seeds`: from `config.seed` on, where it has one, else from 0. `chunk`: runs that are measured and kept at once.

    Runs go one after the other: a study is Python. Give it to `run_sweep`. Raises `ValueError` for axes that are no fields of
    `config`.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"study_sweep: config has type {type(config).__name__}; it must be the study's configuration.")
    fields = [field.name for field in dataclasses.fields(config)]
    for name in axes:
        check.choice("study_sweep", "axes", name, fields)
    return Sweep(
        name=study.name,
        measure=functools.partial(_measure, study, config, read),
        axes=axes,
        dims=dims,
        coords=coords or {},
        seeds=seeds,
        chunk=chunk,
        traced=False,
        base=int(getattr(config, "seed", 0)),
        given={"config": study.saved(config), "code": [code_digest(study.measure), code_digest(read)]},
    )


def _measure(
    study: Study, config: Any, read: Callable[[Evidence], Mapping[str, Any]], seed: int, **point: Any
) -> Mapping[str, Any]:
    fields = {field.name for field in dataclasses.fields(config)}
    at = dataclasses.replace(config, **point, **({"seed": seed} if "seed" in fields else {}))
    at = at if study.resolve is None else study.resolve(at)
    parts = Parts(None, study.name, lambda text: None)
    with jax.enable_x64(study.double or bool(jax.config.read("jax_enable_x64"))):
        return read(study.measure(at, seed, parts))
