"""The stability study: step limits predicted and measured, and maps of what v1 (21) and the corrected bound get wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from pdejax._arguments import checked
from pdejax._equation import MasterEquation
from pdejax.analysis.stability import measure_dt_max, predict_dt_max
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Column, Table
from pdejax.runs.sweep import collect_sweep
from pdejax.solvers import RKC2, Grid
from pdejax.studies.numerics._stability_config import StabilityConfig
from pdejax.studies.numerics._stability_maps import (
    AXES,
    SLICES,
    STATUS,
    Measured,
    classify,
    family,
    map_plot,
    map_sweep,
    points,
)
from pdejax.studies.study import Evidence, Judgement, Study, failed, run, settings
from pdejax.terms import Attention, Diffusion, FeedForward, LinearDamping

RKC_STAGES = 6
AGREEMENT = 0.02  # within which a measured step limit counts as predicted
COLUMNS = (
    Column("solver", width=8),
    Column("equation", width=33),
    Column("predicted", ".5g", 10, right=True),
    Column("measured", ".5g", 10, right=True),
    Column("difference", "+.2%", 10, right=True),
)
MAPS = (
    Column("family"),
    *(Column(head, "d", right=True) for head in ("runs", "stable", "unstable", "overflow")),
    *(
        Column(f"{bound} {wrong}", "d", right=True)
        for bound in ("v1 (21)", "corrected")
        for wrong in (("inside", "false safe", "alarm") if bound == "corrected" else ("false safe", "alarm"))
    ),
)


@checked
def stability(
    config: StabilityConfig | None = None,
    *,
    report: Callable[[str], None] | None = None,
    row: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Run the study (in float64, without touching the caller's precision setting).

    `report(text)` is told what is being measured; `row(record)` gets each record of `results["dt_max"]` as soon as it is there.
    With `config.out` every chunk of runs is saved as it is finished, an interrupted study resumes, and `stability.json`,
    `stability.nc` and a plot are written.

    `results` has `dt_max` (a dictionary per solver and equation) and `maps` (one per family). `to_xarray()` has every run:
    its parameters, its status (0 stable, 1 unstable, 2 overflow), and the left sides of the bounds.

    Raises `ValueError` for a configuration that cannot be run and `ResultError` for a folder that cannot be written.
    """
    config = StabilityConfig() if config is None else config
    return run(STABILITY, config, out=config.out, report=report, row=row)


def measure(config: StabilityConfig, seed: int, parts: Parts) -> Evidence:
    """Measure the largest steps, and every run of the maps, part by part."""
    del seed  # the configuration's own
    records = _limits(config, parts)
    runs = {name: _map(config, name, parts) for name in config.families}
    return {"dt_max": records, "maps": [summarize(name, found) for name, found in runs.items()], "runs": runs}


def judge(config: StabilityConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Answer from the numbers: are steps as predicted, and which bound is sufficient, which necessary?"""
    [found] = evidence
    answers = verdicts(found)
    wrong = failed(answers)
    data = _dataset(config, found["runs"])
    caption = (
        "Where Euler's runs were stable, and where v1 (21) (dashed) and the corrected bound (solid, G ≤ c) draw a line."
    )
    return Judgement(
        sentence=f"not as it should be: {', '.join(wrong)}"
        if wrong
        else "steps are as predicted, the corrected bound holds where G ≤ c",
        verdicts=answers,
        passed=not wrong,
        tables=(
            *([Table(COLUMNS, [cells(record) for record in found["dt_max"]])] if found["dt_max"] else []),
            *([Table(MAPS, [_counts(m) for m in found["maps"]])] if found["maps"] else []),
        ),
        results={"dt_max": found["dt_max"], "maps": found["maps"]},
        dataset=data,
        pictures=(Picture("stability_map.png", caption, lambda: map_plot(data)),) if found["runs"] else (),
    )


def cells(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """A solver's largest step on an equation, predicted and measured, as a line of the table."""
    return tuple(record[key] for key in ("solver", "equation", "predicted", "measured", "difference"))


def _counts(m: Mapping[str, Any]) -> tuple[Any, ...]:
    wrong = (m["v1"][key] for key in ("false_safe", "false_alarm"))
    corrected = (m["corrected"][key] for key in ("inside", "false_safe", "false_alarm"))
    return (*(m[key] for key in ("family", "runs", "stable", "unstable", "overflow")), *wrong, *corrected)


def equations(config: StabilityConfig) -> dict[str, MasterEquation]:
    """Fields whose stiffness is linear, of one structure so that a solver's step compiles once: diffusion alone, with a
    Transformer's terms and leaks, and with damping on top."""
    keys = jax.random.split(jax.random.key(config.seed), 2)
    attention = Attention(config.dim, key=keys[0], leak=True)
    network = FeedForward(config.dim, 2 * config.dim, key=keys[1], leak=True)
    found = {}
    for name, strength, gamma in (
        ("diffusion", 0.0, 0.0),
        ("diffusion + Transformer", 1.0, 0.0),
        ("diffusion + Transformer + damping", 1.0, 5.0),
    ):
        found[name] = MasterEquation(
            interaction=_scaled(attention, strength),
            reaction=_scaled(network, strength),
            diffusion=Diffusion(Grid(config.tokens), config.diffusivity),
            stabilization=LinearDamping(gamma),
        )
    return found


def _scaled(term, strength: float):
    return eqx.tree_at(lambda e: e.strength, term, jnp.asarray(strength))


def _limits(config: StabilityConfig, parts: Parts) -> list[dict[str, Any]]:
    u = jax.random.normal(jax.random.key(config.seed + 2), (config.tokens, config.dim))
    records = []
    for solver in config.solvers:
        for name, equation in equations(config).items():

            def measure(solver=solver, name=name, equation=equation):
                parts.say(f"largest step of {solver} on {name}")
                # By name rkc2 chooses its stages in every step, and then has no limit.
                scheme = RKC2(stages=RKC_STAGES) if solver == "rkc2" else solver
                predicted, measured = predict_dt_max(equation, u, scheme), measure_dt_max(equation, u, scheme)
                return {
                    "solver": solver,
                    "equation": name,
                    "predicted": predicted.dt_max,
                    "measured": measured.dt_max,
                    "difference": measured.dt_max / predicted.dt_max - 1,
                    "spectral_radius": predicted.spectral_radius,
                    "steps": measured.steps,
                }

            record = parts.get(f"dt_max-{solver}-{name.replace(' ', '_')}", measure)
            records.append(record)
            parts.row(record)
    return records


def _map(config: StabilityConfig, name: str, parts: Parts) -> dict[str, np.ndarray]:
    """Every run of a family, chunk by chunk, over all devices."""
    kind, where = family(name, config.seed), points(config, name)
    data = collect_sweep(map_sweep(config, kind, where), parts=parts, report=parts.say)
    measured = Measured(*(np.asarray(data[key].isel(seed=0), float) for key in Measured._fields))
    return {**where, **measured._asdict(), **classify(kind, where, measured, config.steps)}


def summarize(name: str, runs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Counts of a family's runs. *Inside*: the bound's hypothesis is met, for the corrected one G ≤ c; others count for nothing.
    *False-safe*: within the bound and unstable. *False alarm*: beyond it and stable. Runs whose flow overflows count for neither.
    The smallest and largest left sides are of the runs that contradict the bound most clearly."""
    status = runs["status"]
    counts = {word: int(np.sum(status == code)) for code, word in enumerate(STATUS)}
    summary: dict[str, Any] = {"family": name, "runs": len(status), **counts}
    for bound in ("v1", "corrected"):
        left = runs[f"{bound}_left"]
        inside, safe = np.isfinite(left), left <= 1
        wrong, alarm = safe & (status == 1), inside & ~safe & (status == 0)
        summary[bound] = {
            "inside": int(np.sum(inside & (status != 2))),
            "safe": int(np.sum(safe & (status != 2))),
            "false_safe": int(np.sum(wrong)),
            "false_alarm": int(np.sum(alarm)),
            "smallest_left_of_false_safe": _chosen(runs, wrong, bound, np.argmin),
            "largest_left_of_false_alarm": _chosen(runs, alarm, bound, np.argmax),
        }
    return summary


def _chosen(runs: dict[str, np.ndarray], which: np.ndarray, bound: str, choose) -> dict[str, float] | None:
    index = np.flatnonzero(which)
    if len(index) == 0:
        return None
    i = int(index[choose(runs[f"{bound}_left"][index])])
    return {"left": float(runs[f"{bound}_left"][i]), **{axis: float(runs[axis][i]) for axis in AXES}}


def verdicts(results: Mapping[str, Any]) -> dict[str, str]:
    """Write one sentence per question, made from the numbers."""
    found = {}
    if results["dt_max"]:
        gaps = [abs(r["difference"]) if r["difference"] is not None else float("inf") for r in results["dt_max"]]
        worst = results["dt_max"][int(np.argmax(gaps))]
        word = "as predicted" if max(gaps) <= AGREEMENT else "NOT as predicted"
        found["largest step"] = (
            f"{word}: measured within {max(gaps):.2%} at worst ({worst['solver']} on {worst['equation']})"
        )
    maps = results["maps"]
    if not maps:
        return found
    for bound, title in (("v1", "v1 (21)"), ("corrected", "corrected bound")):
        safe = sum(m[bound]["safe"] for m in maps)
        wrong = [m for m in maps if m[bound]["false_safe"]]
        alarm = [m for m in maps if m[bound]["false_alarm"]]
        number = sum(m[bound]["false_safe"] for m in maps)
        if bound == "corrected":
            word = "holds in every run with G ≤ c" if not number else "VIOLATED"
        else:
            word = "no counterexample among these runs" if not number else "not sufficient"
        found[f"{title} sufficient"] = f"{word}: {number} of {safe} runs that it calls safe are unstable" + _names(
            wrong
        )
        alarms = sum(m[bound]["false_alarm"] for m in maps)
        beyond = sum(m[bound]["inside"] - m[bound]["safe"] for m in maps)
        word = "not necessary" if alarms else "no counterexample among these runs"
        found[f"{title} necessary"] = f"{word}: {alarms} of {beyond} runs beyond it are stable" + _names(alarm)
    return found


def _names(maps: list[dict[str, Any]]) -> str:
    return f" ({', '.join(m['family'] for m in maps)})" if maps else ""


def _dataset(config: StabilityConfig, runs: Mapping[str, Mapping[str, np.ndarray]]) -> xr.Dataset:
    names = list(runs)
    keys = (*AXES, "status", "v1_left", "corrected_left", "state", "perturbation")
    count = config.resolution**2 + config.draws
    variables: dict[str, Any] = {
        key: (("family", "run"), np.stack([runs[n][key] for n in names]) if names else np.zeros((0, count)))
        for key in keys
    }
    variables["slice_axis"] = (("family",), [SLICES[n] for n in names])
    return xr.Dataset(
        variables,
        coords={"family": names},
        attrs={
            "study": "stability",
            "seed": config.seed,
            "resolution": config.resolution,
            "status": "0 stable, 1 unstable, 2 overflow",
            "slice": "the first resolution² runs, step-major",
        },
    )


STABILITY = Study(
    name="stability",
    title="Largest stable steps, and what the stability conditions promise",
    question="How large may a step be, and do v1 (21) and the corrected bound tell?",
    source="v1 (21)",
    measure=measure,
    judge=judge,
    identity=lambda config: settings(config, without=("solvers", "families")),
    columns=COLUMNS,
    cells=cells,
)
