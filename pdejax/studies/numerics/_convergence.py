"""The convergence study: the continuum limit of a Transformer, measured on real input."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdejax import analysis
from pdejax._arguments import checked
from pdejax._depth import DepthVarying, smooth_random
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._types import Field
from pdejax.analysis.numerics import FieldConstants, Reference
from pdejax.data import digits, listops
from pdejax.models import Architecture, Transformer, lift, load_model
from pdejax.plot._style import COLOURS, MARKERS
from pdejax.runs._files import plain
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Column, Table
from pdejax.studies.numerics._convergence_config import ConvergenceConfig
from pdejax.studies.numerics._limits import iid_spread, regime, spatial_convergence
from pdejax.studies.study import Evidence, Judgement, Study, failed, run, settings


@dataclasses.dataclass(frozen=True)
class Case:
    """The equation of a study, its real input embedded, and how to read the result."""

    equation: MasterEquation | DepthVarying
    base: MasterEquation
    u0: Field
    t1: float
    layers: int
    source: str


def build_case(config: ConvergenceConfig) -> Case:
    """Real input, embedded by the Transformer, and the master equation with its weights (in float64)."""
    model, tokens, source = _model_and_input(config)
    u0 = model.embed(tokens)
    lifted = lift(model).field
    base = lifted.layer(0)
    if config.weights == "smooth":
        t1 = config.own_depth()
        equation = smooth_random(base, t1, key=jax.random.key(config.seed))
        return Case(equation, base, u0, t1, 1, source)
    if config.weights == "iid":
        # Residual scale 1/L over unit depth: the whole network is one step of size 1/L per layer.
        t1 = config.own_depth()
        return Case(DepthVarying(lifted.stacked, t1, "constant"), base, u0, t1, lifted.size, source)
    t1 = lifted.t1 if config.depth is None else config.depth
    return Case(DepthVarying(lifted.stacked, t1, "constant"), base, u0, t1, lifted.size, source)


def _model_and_input(config: ConvergenceConfig):
    if config.weights == "checkpoint":
        assert config.checkpoint is not None
        model, _ = load_model(pathlib.Path(config.checkpoint))
        if not isinstance(model, Transformer):
            raise TypeError(f"checkpoint={config.checkpoint!r} is a {type(model).__name__}; it must be a Transformer.")
        model = model.astype("float64")
        if model.architecture.norm == "post":
            raise ValueError(
                "checkpoint: a post-LN model projects after every step; choose a pre-LN, peri-LN or unnormalized one."
            )
        dataset = "listops" if model.architecture.vocab is not None else "digits"
    else:
        dataset = config.dataset
        model = Transformer(
            Architecture(
                vocab=len(listops.VOCABULARY) if dataset == "listops" else None,
                inputs=None if dataset == "listops" else 1,
                dim=config.dim,
                heads=config.heads,
                layers=config.layers,
                ffn=4 * config.dim if config.ffn is None else config.ffn,
                norm=config.norm,
                activation=config.activation,
                dtype="float64",
                param_dtype="float64",
            ),
            rngs=nnx.Rngs(config.seed),
        )
    if dataset == "listops":
        record = listops.generate(1, min_length=config.length - 1, max_length=config.length + 1, seed=config.seed)
        tokens = record.tokens[0, : config.length]
        return model, jnp.asarray(tokens), f"ListOps: {listops.to_text(np.asarray(tokens))} = {int(record.labels[0])}"
    images = digits.load()
    index = config.seed % len(images.labels)
    return (
        model,
        jnp.asarray(images.values[index], jnp.float64),
        f"digits image {index} of class {int(images.labels[index])}",
    )


NORMS = {"pre": "pre-LN field", "peri": "peri-LN field", "none": "field without LN"}


def error_plot(content: dict[str, Any]) -> Figure:
    """Error against step size, one line per scheme, with the fitted slope and its confidence interval."""
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
    axes.legend(title="scheme: fitted order ± 95 %", fontsize=9, loc="lower left", edgecolor="none", framealpha=0.9)
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
    axes.set_title(
        f"{config['weights']} weights, {config['dataset']}: n = {results['tokens']} tokens, d = {results['features']}, "
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
    interval = "" if record["ci"] is None else f" ± {record['ci']:.2f}"
    return f"{record['solver']}: {record['order']:.2f}{interval}"


SCHEME_TOLERANCE = 0.15  # half-width within which a fitted order counts as the expected one
WIDEST = 0.9  # an interval that reaches the next order says nothing
COLUMNS = (
    Column("solver", width=10),
    Column("order", ".3f", 6, right=True),
    Column("± 95%", ".3f", 6, right=True),
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


def _identity(config: ConvergenceConfig) -> dict[str, Any]:
    """What parts depend on: everything but where they are kept and which schemes and step counts are asked for."""
    asked = settings(config, without=("solvers", "steps", "dt", "spatial", "regimes", "draws", "diffusivity"))
    if config.checkpoint is not None:
        asked["checkpoint_bytes"] = pathlib.Path(config.checkpoint).stat().st_size
        asked["checkpoint_time"] = pathlib.Path(config.checkpoint).stat().st_mtime
    return asked


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
            state["reference"] = analysis.numerics.solve_reference(d, case.u0, tolerance=tolerance)
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
    results["network"] = _network(config, case, results["orders"])
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


def _regimes(config: ConvergenceConfig, case: Case, orders, parts: Parts) -> list[Any]:
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
            parts.say(f"regime of independent layers at residual scale {scaling}")
            key = jax.random.key(config.seed)
            return iid_spread(case.base, case.u0, layers=config.regimes, scaling=scaling, draws=config.draws, key=key)

        name = f"regime-{scaling.replace('/', '_')}-" + "-".join(map(str, config.regimes)) + f"-{config.draws}"
        found.append(parts.get(name, measure))
    return found


def judge(config: ConvergenceConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Answer from the numbers: orders, the spatial order, the regimes, and the a-priori bound."""
    [results] = evidence
    answers = verdicts(results)
    content = {"config": settings(config), "results": results}
    wrong = failed(answers)
    return Judgement(
        sentence=f"not as it should be: {', '.join(wrong)}" if wrong else "all orders and bounds are as they should be",
        verdicts=answers,
        passed=not wrong,
        tables=(Table(COLUMNS, [cells(record) for record in results["orders"]]),),
        notes=notes(results),
        results=results,
        dataset=_dataset(config, results),
        pictures=(
            Picture(
                "error_step.png",
                "Error against step size, one line per scheme, with the fitted slope and its 95 % interval.",
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
        match = spatial["order"] is not None and abs(spatial["order"] - spatial["expected"]) <= SCHEME_TOLERANCE
        found["spatial order"] = (
            f"{'as expected' if match else 'NOT as expected'}: q = {_number(spatial['order'])} for {spatial['expected']:g}"
        )
    for one in results["regimes"]:
        found[f"regime {one['family']}"] = one["verdict"]
    violated = [r["solver"] for r in results["orders"] if _violations(r, results["reference"]["error"])]
    # v2 (12) has the Lipschitz constant and is larger.
    holds = "hold for every scheme and step" if not violated else f"VIOLATED by {', '.join(violated)}"
    found["one-sided bound and v2 (12)"] = holds
    return found


def _order_verdict(record: dict[str, Any]) -> str:
    order, expected = record["order"], record["expected"]
    if any(record["diverged"]):
        return "blew up at some step sizes"
    if order is None:
        return "not measurable: too few errors above the reference's own"
    if expected >= 5 and order > expected - 0.5:
        return f"as expected: order {order:.2f} for {expected:g} (high orders are met from above)"
    if abs(order - expected) <= SCHEME_TOLERANCE:
        return f"as expected: order {order:.2f} for {expected:g}"
    ci = record["ci"]
    if ci is not None and abs(order - expected) <= ci <= WIDEST:
        return f"as expected: order {order:.2f} ± {ci:.2f} for {expected:g} (few and coarse steps)"
    return f"NOT as expected: order {order:.2f} for {expected:g}"


def _violations(record: dict[str, Any], reference_error: float) -> int:
    pairs = zip(record["errors"], record["one_sided_bounds"], strict=True)
    floor = analysis.numerics.error_floor(reference_error)
    return sum(1 for error, bound in pairs if error is not None and bound is not None and error > max(bound, floor))


def _number(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.2f}"


def _dataset(config: ConvergenceConfig, results: Mapping[str, Any]) -> xr.Dataset:
    """Errors, bounds and costs over (solver, steps)."""
    orders = results["orders"]
    counts = sorted({n for row in orders for n in row["steps"]})
    keys = (
        "errors",
        "max_errors",
        "uniform_errors",
        "dense_errors",
        "one_sided_bounds",
        "v2_12_bounds",
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
    return xr.Dataset(
        variables,
        coords={"solver": [row["solver"] for row in orders], "steps": counts},
        attrs={"study": "convergence", "depth": float(results["depth"]), "seed": int(config.seed)},
    )


CONVERGENCE = Study(
    name="convergence",
    title="Convergence to the continuum limit",
    question="Does a Transformer converge to its vector field's solution as the step is refined, and at which order?",
    source="v2 §3, v1 (24)",
    measure=measure,
    judge=judge,
    identity=_identity,
    columns=COLUMNS,
    cells=cells,
)
