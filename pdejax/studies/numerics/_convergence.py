"""The convergence study: the continuum limit of a Transformer, measured on real input."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdejax import analysis
from pdejax._arguments import checked
from pdejax._discretization import Discretization
from pdejax._simulate import simulate
from pdejax.analysis import fit_order, mesh_norm
from pdejax.analysis.limits._exponents import ROUNDING
from pdejax.analysis.numerics import FieldConstants, Reference, error_floor
from pdejax.plot._style import COLOURS, MARKERS
from pdejax.runs._files import plain
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Column, Table
from pdejax.studies.numerics._convergence_case import Case, build_case, fingerprint
from pdejax.studies.numerics._convergence_config import ConvergenceConfig
from pdejax.studies.numerics._convergence_dataset import dataset
from pdejax.studies.numerics._limits import Regime, iid_spreads, smooth_regime, spatial_convergence
from pdejax.studies.study import Evidence, Judgement, Study, failed, run, settings

NORMS = {"pre": "pre-LN field", "peri": "peri-LN field", "post": "post-LN flow", "none": "field without LN"}


def error_plot(content: dict[str, Any]) -> Figure:
    """Error against step size, one line per scheme, with the order and its interval."""
    figure, axes = _axes(
        content,
        "step size h = T/steps (layers of depth)",
        "relative error at depth T, $\\|u_h - u\\|_\\Omega/\\|u\\|_\\Omega$",
    )
    for style, record in _styled(content):
        h, errors = np.asarray(record["step_sizes"]), _values(record["errors"])
        axes.loglog(h, errors, label=_slope_label(record), **style)
        used = np.isin(record["steps"], record["used"])
        if record["order"] is not None and used.sum() > 1:
            middle = np.exp(np.mean(np.log(errors[used]) - record["order"] * np.log(h[used])))
            axes.loglog(h[used], middle * h[used] ** record["order"], color=style["color"], linewidth=5, alpha=0.25)
    floor = content["results"]["reference"]["error"]
    if floor:
        axes.axhline(floor, color="0.4", linestyle=":", linewidth=1.2, label="reference's own error (estimate)")
    axes.invert_xaxis()
    axes.legend(title="scheme: extrapolated order", fontsize=9, loc="lower left", edgecolor="none", framealpha=0.9)
    return figure


def work_precision_plot(content: dict[str, Any]) -> Figure:
    """Error against field evaluations: what each scheme buys for its work."""
    figure, axes = _axes(
        content, "field evaluations (a splitting: whole-field equivalents)", "relative error at depth T"
    )
    for style, record in _styled(content):
        work = np.asarray(record["evaluations"], float)
        shown = np.where(work > 0, work, np.nan)
        axes.loglog(shown, _values(record["errors"]), label=record["solver"], **style)
    axes.legend(title="scheme", fontsize=9, loc="lower left", edgecolor="none", framealpha=0.9)
    return figure


def _axes(content: dict[str, Any], x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    config, results = content["config"], content["results"]
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    # A checkpoint brings its own norm and activation, whatever the configuration says.
    field = "" if config["weights"] == "checkpoint" else f", {NORMS[config['norm']]}, {config['activation']}"
    data = results.get("dataset", config["dataset"])
    axes.set_title(
        f"{config['weights']} weights, {data}: n = {results['tokens']} tokens, d = {results['features']}, "
        f"T = {results['depth']:g}{field}",
        fontsize=10,
    )
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styled(content: dict[str, Any]):
    for i, record in enumerate(content["results"]["orders"]):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        yield {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4}, record


def _values(errors) -> np.ndarray:
    return np.asarray([np.nan if e is None or e <= 0 else e for e in errors], float)


def _slope_label(record: dict[str, Any]) -> str:
    if record["order"] is None:
        return f"{record['solver']}: not measurable"
    interval = "" if record["ci"] is None else f" ± {record['ci']:.3f}"
    return f"{record['solver']}: {record['order']:.3f}{interval}"


WIDEST = 0.5  # an interval beyond this reaches halfway to the next order, and says nothing
COLUMNS = (
    Column("solver", width=10),
    Column("order", ".3f", 6, right=True),
    Column("±", ".3f", 6, right=True),
    Column("expect", "g", 6, right=True),
    Column("steps", "d", 5, right=True),
    Column("error", ".2e", 8, right=True),
    Column("max-norm", ".2e", 8, right=True),
    Column("uniform", ".2e", 8, right=True),
    Column("bound/err", ".1f", 9, right=True),
    Column("evals", "d", 5, right=True),
    Column("ms", ".2f", 8, right=True),
)


@checked
def convergence(
    config: ConvergenceConfig | None = None,
    *,
    report: Callable[[str], None] | None = None,
    row: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Run the study (in float64, without touching the caller's precision setting).

    `report(text)` is told what is being measured; `row(record)` gets each scheme's record as soon as it is there. With
    `config.out` every part is saved as it is finished, an interrupted study resumes, and `convergence.json`,
    `convergence.nc` and two plots are written.

    `results` has `orders` (a dictionary per scheme), `reference`, `constants`, `spatial`, `regimes`, `input`, `network`.

    Raises `ValueError` for a configuration that cannot be run and `ResultError` for a folder that cannot be written.
    """
    config = ConvergenceConfig() if config is None else config
    return run(CONVERGENCE, config, out=config.out, report=report, row=row)


def _saved(config: ConvergenceConfig) -> dict[str, Any]:
    """The configuration without the machine's paths: files by their names."""
    names = {key: None if getattr(config, key) is None else pathlib.Path(getattr(config, key)).name for key in _PATHS}
    data = {key: value for key, value in config.data.items() if key not in ("data_dir", "manual_dir", "download")}
    return settings(config) | names | {"data": data}


_PATHS = ("checkpoint", "file")
SCALINGS = ("1/L", "1/sqrt(L)")  # of the residual, whose regimes are measured


def _identity(config: ConvergenceConfig) -> dict[str, Any]:
    """What parts depend on: everything but where they are kept and which schemes and step counts are asked for."""
    asked = ("solvers", "steps", "dt", "spatial", "regimes", "draws", "diffusivity")
    return {key: value for key, value in _saved(config).items() if key not in asked} | fingerprint(config)


def measure(config: ConvergenceConfig, seed: int, parts: Parts) -> Evidence:
    """Measure reference, constants, each scheme's errors, the spatial order and the regimes, part by part."""
    del seed  # the configuration's own
    say = parts.say
    say("real input and weights")
    case = build_case(config)
    steps = config.step_counts(case.t1, case.layers)
    state: dict[str, Any] = {}
    tolerance = config.tolerance
    d = Discretization(case.equation, "dopri8", t1=case.t1, rtol=tolerance, atol=tolerance)

    def reference() -> Reference:
        # Arrays are cheap to solve for again and large to keep: only their summary is a part.
        if "reference" not in state:
            say("reference solution")
            state["reference"] = analysis.numerics.solve_reference(d, case.u0, tolerance=tolerance, progress=False)
        return state["reference"]

    def summary():
        r = reference()
        return {key: getattr(r, key) for key in ("error", "uniform_error", "tolerance", "evaluations", "seconds")}

    results: dict[str, Any] = {
        "input": case.source,
        "dataset": case.dataset,
        "tokens": case.u0.shape[0],
        "features": case.u0.shape[1],
        "depth": case.t1,
        "reference": parts.get("reference", summary),
    }

    def constants():
        say("growth constants along the trajectory")
        return analysis.numerics.measure_constants(d, reference())

    results["constants"] = parts.get("constants", constants)
    known = FieldConstants(**results["constants"])
    results["orders"] = []
    for solver in config.solvers:

        def measure(solver=solver):
            return analysis.numerics.measure_scheme(
                d, case.u0, steps=steps, solver=solver, reference=reference(), constants=known, report=say
            )

        record = parts.get(f"scheme-{solver}-" + "-".join(map(str, steps)), measure)
        results["orders"].append(record)
        parts.row(record)
    if case.block is None:
        results["network"] = _network(config, case, results["orders"])
    else:
        counts = "-".join(map(str, steps))
        results["network"] = parts.get(f"network-{counts}", lambda: _blocks(config, case, steps, reference(), say))
    results["spatial"] = None
    if config.spatial:

        def spatial():
            say("spatial order")
            return spatial_convergence(case.base, case.u0, tokens=config.spatial, diffusivity=config.diffusivity)

        name = "spatial-" + "-".join(map(str, config.spatial)) + f"-{config.diffusivity:g}"
        results["spatial"] = parts.get(name, spatial)
    results["regimes"] = _regimes(config, case, results["orders"], parts)
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


def _blocks(config: ConvergenceConfig, case: Case, steps: Sequence[int], reference: Reference, say) -> dict[str, Any]:
    """How far post-LN blocks u ← ρ(u + hf(u)) are from the projected flow, at the network's own steps and in the sweep."""
    assert case.block is not None
    layers = case.layers if case.layers > 1 else config.layers
    end, distances = reference.us[-1], {}
    for n in sorted({layers, *steps}):
        say(f"post-LN blocks: {n} steps")
        found = simulate(case.block.replace(solver=case.block.solver, steps=n), case.u0, save="end").us[-1]
        distances[n] = float(mesh_norm(found - end) / mesh_norm(end))
    fit = fit_order([case.t1 / n for n in steps], [distances[n] for n in steps], floor=error_floor(reference.error))
    return {
        "layers": layers,
        "distance": distances[layers],
        "steps": list(steps),
        "distances": [distances[n] for n in steps],
        "order": fit.order,
        "ci": fit.ci,
        "expected": 1.0,
    }


def _regimes(config: ConvergenceConfig, case: Case, orders, parts: Parts) -> list[Any]:
    found: list[Any] = []
    euler = next((r for r in orders if r["solver"] == "euler"), None)
    if euler is not None and case.layers == 1:
        used = [i for i, n in enumerate(euler["steps"]) if n in euler["used"]]
        steps, errors = ([euler[key][i] for i in used] for key in ("steps", "errors"))
        found.append(plain(smooth_regime(steps, errors)))
    spreads: dict[str, Regime] = {}
    for scaling in SCALINGS if config.regimes else ():

        def measure(scaling=scaling):
            if not spreads:  # one pass serves all of them
                parts.say(f"regimes of independent layers at residual scales {' and '.join(SCALINGS)}")
                key = jax.random.key(config.seed)
                found = iid_spreads(
                    case.base, case.u0, layers=config.regimes, scalings=SCALINGS, draws=config.draws, key=key
                )
                spreads.update(zip(SCALINGS, found, strict=True))
            return spreads[scaling]

        name = f"regime-{scaling.replace('/', '_')}-" + "-".join(map(str, config.regimes)) + f"-{config.draws}"
        found.append(parts.get(name, measure))
    return found


def judge(config: ConvergenceConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Answer from the numbers: orders, the spatial order, the regimes, and the a-priori bound."""
    [results] = evidence
    answers = verdicts(results)
    content = {"config": _saved(config), "results": results}
    wrong = failed(answers)
    undecided = [name for name, answer in answers.items() if answer.startswith(("not decided", "not measurable"))]
    said = "all orders and bounds are as they should be"
    if wrong or undecided:
        said = (
            f"not as it should be: {', '.join(wrong)}"
            if wrong
            else f"nothing is wrong; not decided: {', '.join(undecided)}"
        )
    return Judgement(
        sentence=said,
        verdicts=answers,
        passed=not wrong,
        tables=(Table(COLUMNS, [cells(record) for record in results["orders"]]),),
        notes=notes(results),
        results=results,
        dataset=dataset(config, results),
        pictures=(
            Picture(
                "error_step.png",
                "Error against step size, one line per scheme, with the order extrapolated to small steps, and its interval.",
                lambda: error_plot(content),
            ),
            Picture(
                "work_precision.png",
                "Error against field evaluations: what each scheme buys for its work.",
                lambda: work_precision_plot(content),
            ),
        ),
    )


def cells(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """One scheme at its finest step whose error was used in the fit, as a line of the table."""
    used = record["used"] or record["steps"][-1:]
    i = record["steps"].index(used[-1])
    error, bound = record["errors"][i], record["one_sided_bounds"][i]
    return (
        *(record[key] for key in ("solver", "order", "ci", "expected")),
        *(record[key][i] for key in ("steps", "errors", "max_errors", "uniform_errors")),
        None if not error or bound is None else bound / error,
        record["evaluations"][i] if record["evaluations"][i] >= 0 else None,
        1e3 * record["seconds"][i],
    )


def notes(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Input, reference, constants, the network's distance and the spatial order, a line each."""
    constants, reference, spatial = results["constants"], results["reference"], results["spatial"]
    lines = [
        f"input       {results['input']}",
        f"reference   Dopri8 at {reference['tolerance']:.0e}, own error {reference['error']:.1e} at T "
        f"({reference['uniform_error']:.1e} over depth), {reference['evaluations']} evaluations",
        f"constants   log-norm {constants['log_norm_on_trajectory']:.3f}, Lipschitz {constants['lipschitz_on_trajectory']:.3f}, "
        f"sup|u''| {constants['curvature_on_trajectory']:.3f}, on the trajectory",
    ]
    if results["network"]:
        network = results["network"]
        lines.append(
            f"network     {network['layers']} layers stand {network['distance']:.1%} away from their continuum limit"
        )
    if spatial:
        lines.append(
            f"space       q = {_number(spatial['order'])} from N = {spatial['tokens']}, "
            f"D = {spatial['diffusivity']:g} ({spatial['boundary']})"
        )
    return tuple(lines)


def verdicts(results: Mapping[str, Any]) -> dict[str, str]:
    """Write one sentence per question, made from the numbers."""
    found = {}
    for record in results["orders"]:
        found[f"order {record['solver']}"] = _order_verdict(record)
    spatial = results["spatial"]
    if spatial is not None:
        found["spatial order"] = _fitted(**{key: spatial[key] for key in ("order", "ci", "expected")})
    if results.get("network") and "order" in results["network"]:
        found["order of post-LN blocks"] = _fitted(
            **{key: results["network"][key] for key in ("order", "ci", "expected")}
        )
    for one in results["regimes"]:
        found[f"regime {one['family']}"] = one["verdict"]
    violated = [r["solver"] for r in results["orders"] if _violations(r, results["reference"]["error"])]
    # v2 (12) has the Lipschitz constant and is larger.
    holds = "hold for every scheme and step" if not violated else f"VIOLATED by {', '.join(violated)}"
    found["one-sided bound and v2 (12)"] = holds
    return found


def _order_verdict(record: dict[str, Any]) -> str:
    if any(record["diverged"]):
        return "blew up at some step sizes"
    return _fitted(record["order"], record["ci"], record["expected"])


def _fitted(order: float | None, ci: float | None, expected: float) -> str:
    """As expected where the interval holds the order of theory, if it is not so wide that it says nothing."""
    if order is None:
        return "not measurable: too few errors above the reference's own"
    if ci is None and abs(order - expected) > WIDEST:
        return f"NOT as expected: order {order:.2f} of two errors for {expected:g}"
    if ci is None or ci > WIDEST:
        interval = "" if ci is None else f" ± {ci:.2f}"
        return f"not decided: order {order:.2f}{interval} for {expected:g} (too few or too coarse steps)"
    said = "as expected" if abs(order - expected) <= ci + ROUNDING else "NOT as expected"
    return f"{said}: order {order:.3f} ± {ci:.3f} for {expected:g}"


def _violations(record: dict[str, Any], reference_error: float) -> int:
    pairs = zip(record["errors"], record["one_sided_bounds"], strict=True)
    floor = analysis.numerics.error_floor(reference_error)
    return sum(1 for error, bound in pairs if error is not None and bound is not None and error > max(bound, floor))


def _number(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.2f}"


CONVERGENCE = Study(
    name="convergence",
    title="Convergence to the continuum limit",
    question="Does a Transformer converge to its vector field's solution as the step is refined, and at which order?",
    source="v2 §3, v1 (24)",
    measure=measure,
    judge=judge,
    saved=_saved,
    identity=_identity,
    columns=COLUMNS,
    cells=cells,
)
