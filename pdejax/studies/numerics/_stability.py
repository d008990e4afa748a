"""The stability study: step limits predicted and measured, and maps of what v1 (21) and the corrected bound get wrong."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from pdejax._equation import MasterEquation
from pdejax.analysis.stability import measure_dt_max, predict_dt_max
from pdejax.runs._parts import Parts, environment, write_json, write_whole
from pdejax.solvers import RKC2, Grid
from pdejax.studies.numerics._stability_config import StabilityConfig
from pdejax.studies.numerics._stability_maps import (
    AXES,
    SLICES,
    STATUS,
    Measured,
    Parameters,
    classify,
    family,
    points,
    run_chunk,
    start_fields,
)
from pdejax.studies.study import settings
from pdejax.terms import Attention, Diffusion, FeedForward, LinearDamping

RKC_STAGES = 6
AGREEMENT = 0.02  # within which a measured step limit counts as predicted


@dataclasses.dataclass(frozen=True)
class StabilityResult:
    """`config`, `environment`, `results` (`dt_max`: one dictionary per solver and equation; `maps`: one per family),
    `verdicts`, and `files` written, if any. `runs`: every run of the maps, as a dataset over (family, run)."""

    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, Any]
    verdicts: dict[str, str]
    runs: xr.Dataset
    files: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The content of `stability.json`."""
        content = {key: getattr(self, key) for key in ("config", "environment", "results", "verdicts")}
        return {"study": "stability", **content}

    def to_xarray(self) -> xr.Dataset:
        """Every run: its parameters, its status (0 stable, 1 unstable, 2 overflow), and the left sides of the bounds."""
        return self.runs


def stability(
    config: StabilityConfig | None = None,
    *,
    report: Callable[[str], None] | None = None,
    row: Callable[[dict[str, Any]], None] | None = None,
) -> StabilityResult:
    """Run the study (in float64, without touching the caller's precision setting).

    `report(text)` is told what is being measured; `row(record)` gets each record of `results.dt_max` as soon as it is there.
    With `config.out` every chunk of runs is saved as it is finished, an interrupted study resumes, and `stability.json`,
    `stability.nc` and a plot are written.

    Raises `ValueError` for a configuration that cannot be run and `ResultError` for a folder that cannot be written.
    """
    config = StabilityConfig() if config is None else config
    say = report if report is not None else lambda text: None
    started = time.perf_counter()
    out = None if config.out is None else pathlib.Path(config.out)
    parts = Parts(out, _identity(config), notice=say)
    with jax.enable_x64(True):
        records = _limits(config, parts, say, row)
        maps, runs = [], {}
        for name in config.families:
            measured = _map(config, name, parts, say)
            maps.append(summarize(name, measured))
            runs[name] = measured
        where = environment()
    results = {"dt_max": records, "maps": maps, "seconds": time.perf_counter() - started}
    result = StabilityResult(settings(config), where, results, verdicts(results), _dataset(config, runs))
    if out is None:
        return result
    say("plot and files")
    return dataclasses.replace(result, files=_write(out, result))


def _identity(config: StabilityConfig) -> dict[str, Any]:
    """What parts depend on: everything but where they are kept and which solvers and families are asked for."""
    asked = settings(config)
    for key in ("solvers", "families"):
        asked.pop(key)
    return {"study": "stability", **asked}


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


def _limits(config: StabilityConfig, parts: Parts, say, row) -> list[dict[str, Any]]:
    u = jax.random.normal(jax.random.key(config.seed + 2), (config.tokens, config.dim))
    records = []
    for solver in config.solvers:
        for name, equation in equations(config).items():

            def measure(solver=solver, name=name, equation=equation):
                say(f"largest step of {solver} on {name}")
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
            if row is not None:
                row(record)
    return records


def _map(config: StabilityConfig, name: str, parts: Parts, say) -> dict[str, np.ndarray]:
    """Every run of a family, chunk by chunk; the last chunk is padded so that one compiled function serves all."""
    kind, where = family(name, config.seed), points(config, name)
    parameters = kind.parameters(where)
    total = len(where["step"])
    u0, v0 = start_fields(config.seed)
    collected = []
    for start in range(0, total, config.chunk):

        def measure(start=start):
            say(f"map of {name}: run {start} of {total}")
            index = np.minimum(np.arange(start, start + config.chunk), total - 1)
            chosen = Parameters(*(jnp.asarray(values[index]) for values in parameters))
            found = run_chunk(kind.equation, chosen, u0, v0, config.steps)
            return {key: np.asarray(value)[: total - start] for key, value in found._asdict().items()}

        part = parts.get(f"map-{name.replace(' ', '_')}-{start}", measure)
        collected.append({key: np.asarray(part[key], float) for key in Measured._fields})
    measured = Measured(*(np.concatenate([part[key] for part in collected]) for key in Measured._fields))
    return {**where, **measured._asdict(), **classify(kind, where, measured, config.steps)}


def summarize(name: str, runs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Counts of a family's runs. *False-safe*: within the bound and unstable. *False alarm*: beyond it and stable. Runs whose
    flow overflows count for neither. `worst_*` are the runs that contradict v1 (21) most clearly."""
    status = runs["status"]
    counts = {word: int(np.sum(status == code)) for code, word in enumerate(STATUS)}
    summary: dict[str, Any] = {"family": name, "runs": len(status), **counts}
    for bound in ("v1", "corrected"):
        safe = runs[f"{bound}_left"] <= 1
        wrong, alarm = safe & (status == 1), ~safe & (status == 0)
        summary[bound] = {
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


def verdicts(results: dict[str, Any]) -> dict[str, str]:
    """One sentence per question, made from the numbers."""
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
            word = "holds in every run" if not number else "VIOLATED"
        else:
            word = "no counterexample among these runs" if not number else "not sufficient"
        found[f"{title} sufficient"] = f"{word}: {number} of {safe} runs that it calls safe are unstable" + _names(
            wrong
        )
        alarms = sum(m[bound]["false_alarm"] for m in maps)
        beyond = sum(m["runs"] - m["overflow"] - m[bound]["safe"] for m in maps)
        word = "not necessary" if alarms else "no counterexample among these runs"
        found[f"{title} necessary"] = f"{word}: {alarms} of {beyond} runs beyond it are stable" + _names(alarm)
    return found


def _names(maps: list[dict[str, Any]]) -> str:
    return f" ({', '.join(m['family'] for m in maps)})" if maps else ""


def _dataset(config: StabilityConfig, runs: dict[str, dict[str, np.ndarray]]) -> xr.Dataset:
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


def _write(out: pathlib.Path, result: StabilityResult) -> tuple[str, ...]:
    from pdejax.studies.numerics._convergence_plots import save_figure
    from pdejax.studies.numerics._stability_plots import map_plot

    json_path, data_path, plot_path = out / "stability.json", out / "stability.nc", out / "stability_map.png"
    write_json(json_path, result.as_json())
    write_whole(data_path, bytes(result.runs.to_netcdf(engine="scipy", format="NETCDF3_64BIT")))
    written = [json_path, data_path]
    if result.runs.sizes["family"]:
        save_figure(map_plot(result.runs), plot_path)
        written.append(plot_path)
    return tuple(str(path) for path in written)
