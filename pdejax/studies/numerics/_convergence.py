"""The convergence study: the continuum limit of a Transformer, measured on real input."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import xarray as xr

from pdejax import analysis
from pdejax.analysis import FieldConstants, Reference
from pdejax.runs._parts import Parts, environment, plain, settings, write_json, write_whole
from pdejax.studies.numerics._convergence_config import Case, ConvergenceConfig, build_case
from pdejax.studies.numerics._regimes import iid_spread, regime
from pdejax.studies.numerics._spatial import spatial_convergence

SCHEME_TOLERANCE = 0.15  # half-width within which a fitted order counts as the expected one


@dataclasses.dataclass(frozen=True)
class ConvergenceResult:
    """`config`, `environment`, `results` (`orders`, `reference`, `constants`, `spatial`, `regimes`, `input`, `network`),
    `verdicts`, and `files` written, if any. `results.orders` is a list of dictionaries, one per solver."""

    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, Any]
    verdicts: dict[str, str]
    files: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The content of `convergence.json`."""
        content = {key: getattr(self, key) for key in ("config", "environment", "results", "verdicts")}
        return {"study": "convergence", **content}

    def to_xarray(self) -> xr.Dataset:
        """Errors, bounds and costs as a dataset over (solver, steps)."""
        orders = self.results["orders"]
        counts = sorted({n for row in orders for n in row["steps"]})
        keys = (
            "errors",
            "max_errors",
            "uniform_errors",
            "dense_errors",
            "bounds",
            "lipschitz_bounds",
            "evaluations",
            "seconds",
        )
        data = {key: np.full((len(orders), len(counts)), np.nan) for key in keys}
        for i, row in enumerate(orders):
            for j, n in enumerate(row["steps"]):
                for key in keys:
                    value = row[key][j]
                    data[key][i, counts.index(n)] = np.nan if value is None else value
        variables: dict[str, Any] = {key: (("solver", "steps"), value) for key, value in data.items()}
        for key in ("order", "ci", "expected", "uniform_order"):
            values = [np.nan if row[key] is None else row[key] for row in orders]
            variables[key] = (("solver",), np.asarray(values, float))
        solvers = [row["solver"] for row in orders]
        return xr.Dataset(
            variables,
            coords={"solver": solvers, "steps": counts},
            attrs={"study": "convergence", "depth": float(self.results["depth"]), "seed": int(self.config["seed"])},
        )


def convergence(
    config: ConvergenceConfig | None = None,
    *,
    report: Callable[[str], None] | None = None,
    row: Callable[[dict[str, Any]], None] | None = None,
) -> ConvergenceResult:
    """Run the study (in float64, without touching the caller's precision setting).

    `report(text)` is told what is being measured; `row(record)` gets each scheme's record as soon as it is there. With
    `config.out` every part is saved as it is finished, an interrupted study resumes, and `convergence.json`,
    `convergence.nc` and two plots are written.

    Raises `ValueError` for a configuration that cannot be run and `ResultError` for a folder that cannot be written.
    """
    config = ConvergenceConfig() if config is None else config
    say = report if report is not None else lambda text: None
    started = time.perf_counter()
    out = None if config.out is None else pathlib.Path(config.out)
    parts = Parts(out, _identity(config), notice=say)
    with jax.enable_x64(True):
        say("real input and weights")
        case = build_case(config)
        steps = config.step_counts(case.t1, case.layers)
        results = _measure(config, case, steps, parts, say, row)
        where = environment()
    results["seconds"] = time.perf_counter() - started
    verdicts = _verdicts(results)
    result = ConvergenceResult(settings(config), where, results, verdicts)
    if out is None:
        return result
    say("plots and files")
    return dataclasses.replace(result, files=_write(out, result))


def _identity(config: ConvergenceConfig) -> dict[str, Any]:
    """What parts depend on: everything but where they are kept and which schemes and step counts are asked for."""
    asked = settings(config)
    for key in ("solvers", "steps", "dt", "spatial", "regimes", "draws", "diffusivity"):
        asked.pop(key)
    if config.checkpoint is not None:
        asked["checkpoint_bytes"] = pathlib.Path(config.checkpoint).stat().st_size
        asked["checkpoint_time"] = pathlib.Path(config.checkpoint).stat().st_mtime
    return asked


def _measure(config: ConvergenceConfig, case: Case, steps, parts: Parts, say, row) -> dict[str, Any]:
    state: dict[str, Any] = {}

    def reference() -> Reference:
        # Arrays are cheap to solve for again and large to keep: only their summary is a part.
        if "reference" not in state:
            say("reference solution")
            state["reference"] = analysis.solve_reference(
                case.equation, case.u0, t1=case.t1, tolerance=config.tolerance
            )
        return state["reference"]

    def summary():
        r = reference()
        return {key: getattr(r, key) for key in ("error", "uniform_error", "tolerance", "evaluations", "seconds")}

    results: dict[str, Any] = {
        "input": case.source,
        "tokens": case.u0.shape[0],
        "features": case.u0.shape[1],
        "depth": case.t1,
        "reference": parts.get("reference", summary),
    }

    def constants():
        say("growth constants along the trajectory")
        return analysis.measure_constants(case.equation, reference())

    results["constants"] = parts.get("constants", constants)
    known = FieldConstants(**results["constants"])
    results["orders"] = []
    for solver in config.solvers:

        def measure(solver=solver):
            return analysis.measure_scheme(
                case.equation,
                case.u0,
                t1=case.t1,
                steps=steps,
                solver=solver,
                reference=reference(),
                constants=known,
                report=say,
            )

        record = parts.get(f"scheme-{solver}-" + "-".join(map(str, steps)), measure)
        results["orders"].append(record)
        if row is not None:
            row(record)
    results["network"] = _network(config, case, results["orders"])
    results["spatial"] = None
    if config.spatial:

        def spatial():
            say("spatial order")
            return spatial_convergence(case.base, case.u0, tokens=config.spatial, diffusivity=config.diffusivity)

        name = "spatial-" + "-".join(map(str, config.spatial)) + f"-{config.diffusivity:g}"
        results["spatial"] = parts.get(name, spatial)
    results["regimes"] = _regimes(config, case, results["orders"], parts, say)
    return results


def _network(config: ConvergenceConfig, case: Case, orders) -> dict[str, Any] | None:
    """How far the network itself, one native step per layer, is from its continuum limit."""
    layers = case.layers if case.layers > 1 else config.layers
    for record in orders:
        if record["solver"] == "lietrotter" and layers in record["steps"]:
            return {"layers": layers, "distance": record["errors"][record["steps"].index(layers)]}
    for record in orders:
        if record["solver"] == "lietrotter" and case.layers == 1 and record["order"] is not None:
            # Between measured step counts the error is interpolated along the fitted power law of its neighbours.
            h = np.log(record["step_sizes"][::-1])
            e = np.log(record["errors"][::-1])
            return {"layers": layers, "distance": float(np.exp(np.interp(np.log(case.t1 / layers), h, e)))}
    return None


def _regimes(config: ConvergenceConfig, case: Case, orders, parts: Parts, say) -> list[Any]:
    found: list[Any] = []
    euler = next((r for r in orders if r["solver"] == "euler"), None)
    if euler is not None and case.layers == 1:
        used = [i for i, n in enumerate(euler["steps"]) if n in euler["used"]]
        found.append(
            plain(
                regime(
                    "smooth weights",
                    "distance to the ODE's solution",
                    [euler["steps"][i] for i in used],
                    [euler["errors"][i] for i in used],
                )
            )
        )
    for scaling in ("1/L", "1/sqrt(L)") if config.regimes else ():

        def measure(scaling=scaling):
            say(f"regime of independent layers at residual scale {scaling}")
            key = jax.random.key(config.seed)
            return iid_spread(case.base, case.u0, layers=config.regimes, scaling=scaling, draws=config.draws, key=key)

        name = f"regime-{scaling.replace('/', '_')}-" + "-".join(map(str, config.regimes)) + f"-{config.draws}"
        found.append(parts.get(name, measure))
    return found


def _verdicts(results: dict[str, Any]) -> dict[str, str]:
    """One sentence per question, made from the numbers."""
    verdicts = {}
    for record in results["orders"]:
        verdicts[f"order {record['solver']}"] = _order_verdict(record)
    spatial = results["spatial"]
    if spatial is not None:
        match = spatial["order"] is not None and abs(spatial["order"] - spatial["expected"]) <= SCHEME_TOLERANCE
        verdicts["spatial order"] = (
            f"{'as expected' if match else 'NOT as expected'}: q = {_number(spatial['order'])} for {spatial['expected']:g}"
        )
    for found in results["regimes"]:
        verdicts[f"regime {found['family']}"] = found["verdict"]
    violated = [r["solver"] for r in results["orders"] if _violations(r, results["reference"]["error"])]
    holds = "holds for every scheme and step" if not violated else f"VIOLATED by {', '.join(violated)}"
    verdicts["a-priori bound v2 (12)"] = holds
    return verdicts


def _order_verdict(record: dict[str, Any]) -> str:
    order, expected = record["order"], record["expected"]
    if any(record["diverged"]):
        return "blew up at some step sizes"
    if order is None:
        return "not measurable: too few errors above the reference's own"
    if expected >= 5 and order > expected - 0.5:
        return f"as expected: order {order:.2f} for {expected:g} (high orders are met from above)"
    match = abs(order - expected) <= SCHEME_TOLERANCE
    return f"{'as expected' if match else 'NOT as expected'}: order {order:.2f} for {expected:g}"


def _violations(record: dict[str, Any], reference_error: float) -> int:
    pairs = zip(record["errors"], record["bounds"], strict=True)
    floor = analysis.error_floor(reference_error)
    return sum(1 for error, bound in pairs if error is not None and bound is not None and error > max(bound, floor))


def _number(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.2f}"


def _write(out: pathlib.Path, result: ConvergenceResult) -> tuple[str, ...]:
    from pdejax.studies.numerics._convergence_plots import error_plot, save_figure, work_precision_plot

    json_path = out / "convergence.json"
    write_json(json_path, result.as_json())
    data_path = out / "convergence.nc"
    write_whole(data_path, bytes(result.to_xarray().to_netcdf(engine="scipy", format="NETCDF3_64BIT")))
    plots = []
    for name, draw in (("error_step", error_plot), ("work_precision", work_precision_plot)):
        path = out / f"{name}.png"
        save_figure(draw(result.as_json()), path)
        plots.append(path)
    return tuple(str(path) for path in (json_path, data_path, *plots))
