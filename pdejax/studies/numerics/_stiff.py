"""The cost study: field evaluations, time and memory to a given accuracy, as diffusion makes the field stiffer."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from pdejax._arguments import checked
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax.analysis import mesh_norm
from pdejax.plot._style import COLOURS, MARKERS
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Column, Table
from pdejax.solvers import SOLVERS, Grid, real_stability_limit
from pdejax.studies.numerics._stiff_config import StiffConfig
from pdejax.studies.study import Evidence, Judgement, Study, run, settings
from pdejax.terms import Attention, Diffusion, FeedForward


def build_field(config: StiffConfig) -> tuple[Any, Array]:
    """`make(D)`, the equation, and the initial field: ten cosines with amplitudes falling like 1/k, `(N, d)`."""
    ka, kr, ku = jax.random.split(jax.random.key(config.seed), 3)
    grid = Grid(config.tokens)
    attention = Attention(config.dim, config.heads, key=ka)
    reaction = FeedForward(config.dim, config.ffn, activation="gelu", key=kr)
    k = jnp.arange(1, 11)
    waves = jnp.cos(jnp.pi * k[None].astype(float) * grid.points[:, None])
    u0 = waves @ (jax.random.normal(ku, (10, config.dim)) / k[:, None].astype(float))

    def make(diffusivity: float) -> MasterEquation:
        return MasterEquation(interaction=attention, reaction=reaction, diffusion=Diffusion(grid, diffusivity))

    return make, u0


def cost_plot(content: dict[str, Any]) -> Figure:
    """Error against field evaluations (above) and seconds (below), one column per diffusivity.

    Lines with filled markers are runs with doubling step counts; open markers are adaptive runs.
    """
    config, results = content["config"], content["results"]
    ds, names = list(config["diffusivities"]), list(config["solvers"])
    figure = Figure(figsize=(3.4 * len(ds) + 1.6, 6.4), layout="constrained")
    axes = figure.subplots(2, len(ds), sharey=True, sharex="row", squeeze=False)
    for column, d in enumerate(ds):
        for line, (key, label) in enumerate((("evaluations", "field evaluations"), ("seconds", "seconds"))):
            panel = axes[line][column]
            panel.set_xscale("log")
            panel.set_yscale("log")
            for i, name in enumerate(names):
                runs = [r for r in results["cost"] if r["solver"] == name and r["D"] == d]
                fixed = [r for r in runs if r["tolerance"] is None]
                colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
                style = {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 1.3}
                panel.plot([r[key] for r in fixed], [_error(r) for r in fixed], **style)
                adaptive = [r for r in runs if r["tolerance"] is not None]
                style |= {"markerfacecolor": "white", "linestyle": "--" if not fixed else "none", "linewidth": 0.9}
                panel.plot([r[key] for r in adaptive], [_error(r) for r in adaptive], **style)
                for r in adaptive:
                    if r["extrapolated"]:
                        place = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center", "fontsize": 7}
                        panel.annotate("extrapolated", (r[key], _error(r)), **place)
            panel.axhline(results["target"], color="0.4", linestyle=":", linewidth=1.2)
            panel.set_xlabel(label)
            panel.grid(True, which="major", color="0.9")
            panel.spines[["top", "right"]].set_visible(False)
            panel.xaxis.set_minor_formatter(NullFormatter())
            if line == 0:
                radius = 4 * d * results["tokens"] ** 2 * results["depth"]
                panel.set_title(f"D = {d:g}   (spectral radius × T = {radius:.3g})", fontsize=10)
            if column == 0:
                panel.set_ylabel("relative error at depth T")
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=9, title="solver", frameon=False)
    figure.suptitle(
        f"Cost to accuracy: attention, feed-forward and diffusion, N = {results['tokens']}, d = {results['features']}, "
        f"T = {results['depth']:g}.  Filled: equal steps, open: adaptive, dotted: the target",
        fontsize=10,
    )
    return figure


def _error(record: dict[str, Any]) -> float:
    """A diverged run has no error; rounding is where the reference ends."""
    return float("nan") if record["error"] is None else float(np.clip(record["error"], 1e-15, 10.0))


MOST_STEPS = 2048
REFERENCE_STEPS = 96
COLUMNS = (
    Column("solver", width=11),
    Column("D", "g", 6, right=True),
    Column("tolerance", ".0e", 9, right=True),
    *(Column(head, width=width, right=True) for head, width in (("steps", 8), ("evals", 8))),
    Column("error", ".1e", 8, right=True),
    Column("seconds", width=9, right=True),
    Column("MiB", ".1f", 7, right=True),
)


@checked
def stiff(
    config: StiffConfig | None = None,
    *,
    report: Callable[[str], None] | None = None,
    row: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Run the study in float64, without touching the caller's precision setting.

    `report(text)` is told what is being measured, `row(record)` gets every run as it is done. With `config.out` each
    solver at each D is saved when finished, an interrupted study resumes, and `stiff.json`, `stiff.nc` and a
    work–precision plot are written.

    `results["cost"]` has a record per run: solver, D, tolerance or steps, error, evaluations, seconds, peak_mb.

    Raises `ValueError` for a configuration that cannot be run, `ResultError` for a folder that cannot be written.
    """
    config = StiffConfig() if config is None else config
    return run(STIFF, config, out=config.out, report=report, row=row)


def measure(config: StiffConfig, seed: int, parts: Parts) -> Evidence:
    """Measure the references, and the runs of every solver at every D, part by part."""
    del seed  # the configuration's own
    make, u0 = build_field(config)
    cost: list[dict[str, Any]] = []
    references: dict[float, tuple[Array, float]] = {}
    summary: list[dict[str, float]] = []
    peaks: dict[str, float | None] = {}
    for d in config.diffusivities:
        equation = make(d)

        def reference(depth: float, equation=equation, d=d) -> tuple[Array, float]:
            if depth not in references:
                parts.say(f"D = {d:g}: reference")
                references[depth] = _reference(equation, u0, depth)
            return references[depth]

        def accuracy(d=d, reference=reference):
            return {"D": d, "error": reference(config.t1)[1]}

        references.clear()
        summary.append(parts.get(f"reference-{d:g}", accuracy))
        for name in config.solvers:

            def runs(name=name, equation=equation, d=d, reference=reference):
                parts.say(f"D = {d:g}: {name}")
                if name not in peaks:  # the program, and so its memory, does not depend on D
                    peaks[name] = _peak(equation, u0, name, config.t1)
                return _runs(config, name, equation, d, u0, reference, peaks[name])

            records = parts.get(f"{name}-{d:g}", runs)
            cost += records
            for record in records:
                parts.row(record)
    return {
        "tokens": config.tokens,
        "features": config.dim,
        "depth": config.t1,
        "target": config.target,
        "references": summary,
        "cost": cost,
    }


def _reference(equation: MasterEquation, u0: Array, depth: float) -> tuple[Array, float]:
    """A fine exponential solve, and its relative distance from one by another exponential method."""
    a, b = (
        simulate(Discretization(equation, name, t1=depth, steps=REFERENCE_STEPS), u0).us[-1]
        for name in ("etdrk4", "etdrk4ho")
    )
    return a, float(mesh_norm(a - b) / mesh_norm(a))


def _runs(config: StiffConfig, name: str, equation, d: float, u0: Array, reference, peak) -> list[dict[str, Any]]:
    info = SOLVERS[name]
    if info.adaptive and not info.linear:
        return _explicit(config, name, equation, d, u0, reference, peak)
    records, steps = [], 1
    while steps <= MOST_STEPS:
        record = _run(config, name, equation, d, u0, reference, config.t1, peak, steps=steps)
        records.append(record)
        if record["reached"]:
            break
        steps *= 2
    if info.adaptive:
        tolerance = config.target
        adaptive = _run(config, name, equation, d, u0, reference, config.t1, peak, rtol=tolerance, atol=tolerance)
        records.append(adaptive | {"tolerance": tolerance})
    return records


def _explicit(config: StiffConfig, name: str, equation, d, u0, reference, peak) -> list[dict[str, Any]]:
    """Adaptive solves at falling tolerances until the error is reached.

    They begin at the target where stability sets the steps, and above it where the stages adapt.
    """
    depth, fraction = config.t1, 1.0
    limit = real_stability_limit(SOLVERS[name].make(1))
    if limit is not None and not config.full:
        needed = float(equation.damping()) * depth / limit
        fraction = min(1.0, config.explicit_steps / needed)
    records = []
    first = 10 if limit is None else 1
    for tolerance in (config.target * first / 10**k for k in range(5)):
        record = _run(config, name, equation, d, u0, reference, depth * fraction, peak, rtol=tolerance, atol=tolerance)
        record["tolerance"] = tolerance
        if fraction < 1.0:
            # Stability sets the step, so steps and time go with the depth.
            for key in ("steps", "evaluations", "seconds"):
                record[key] = record[key] / fraction
            record["extrapolated"] = True
        records.append(record)
        if record["reached"]:
            break
    return records


def _run(config: StiffConfig, name, equation, d, u0, reference, depth, peak, **how) -> dict[str, Any]:
    expected, _ = reference(depth)

    def solve(t1: float):
        start = time.perf_counter()
        trajectory = simulate(Discretization(equation, name, t1=t1, **how), u0, save="end")
        jax.block_until_ready(trajectory.us)
        return trajectory, time.perf_counter() - start

    solve(1e-4 * depth)  # compiles: the depth and the number of steps are traced
    trajectory, seconds = solve(depth)
    if seconds < 1.0:
        seconds = min(seconds, *(solve(depth)[1] for _ in range(2)))
    error = float(mesh_norm(trajectory.us[-1] - expected) / mesh_norm(expected))
    return {
        "solver": name,
        "D": d,
        "tolerance": None,
        "steps": int(trajectory.stats.steps),
        "rejected": int(trajectory.stats.rejected),
        "evaluations": int(trajectory.stats.evaluations),
        "error": error,
        "reached": bool(error <= config.target),
        "extrapolated": False,
        "seconds": seconds,
        "peak_mb": peak,
    }


def _peak(equation, u0: Array, name: str, depth: float) -> float | None:
    """Temporary memory of the compiled solve, in MiB; None where the backend does not say."""

    @eqx.filter_jit
    def solve(equation, u):
        how: dict[str, Any] = (
            {"rtol": 1e-6, "atol": 1e-6} if SOLVERS[name].adaptive and not SOLVERS[name].linear else {"steps": 4}
        )
        return simulate(Discretization(equation, name, t1=depth, **how), u, save="end").us

    analysis = solve.lower(equation, u0).compile().compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes / 2**20


def cheapest(cost: list[dict[str, Any]], d: float) -> dict[str, dict[str, Any]]:
    """For each solver its first run at D = d that reached the target."""
    found: dict[str, dict[str, Any]] = {}
    for record in cost:
        if record["D"] == d and record["reached"] and record["solver"] not in found:
            found[record["solver"]] = record
    return found


def verdicts(config: StiffConfig, results: Mapping[str, Any]) -> dict[str, str]:
    """Write a sentence per D, made from the numbers."""
    found = {}
    for d in config.diffusivities:
        best = cheapest(results["cost"], d)
        explicit = best.pop("tsit5", None)
        if explicit is None or not best:
            continue
        winner = min(best.values(), key=lambda r: r["seconds"])
        fewer, less = (explicit[key] / winner[key] for key in ("evaluations", "seconds"))
        note = " (Tsit5 extrapolated)" if explicit["extrapolated"] else ""
        found[f"D = {d:g}"] = (
            f"{winner['solver']} reaches {winner['error']:.1e} with {winner['evaluations']:.0f} evaluations in "
            f"{winner['seconds']:.3g} s: {fewer:.3g} times fewer evaluations and {less:.3g} times less time than Tsit5{note}"
        )
    return found


def judge(config: StiffConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Answer from the numbers: at every D, the cheapest stiff scheme beside Tsit5."""
    [results] = evidence
    answers = verdicts(config, results)
    content = {"config": settings(config), "results": results}
    best = [
        record
        for d in config.diffusivities
        for record in sorted(cheapest(results["cost"], d).values(), key=lambda r: r["evaluations"])
    ]
    return Judgement(
        sentence=f"{len(best)} of {len(config.diffusivities) * len(config.solvers)} schemes reach {config.target:.0e}",
        verdicts=answers,
        tables=(
            Table(COLUMNS, [cells(record) for record in results["cost"]]),
            Table(COLUMNS, [cells(record) for record in best], "Cheapest runs to the target error"),
        ),
        notes=[
            f"reference at D = {r['D']:g}: two exponential methods differ by {r['error']:.1e}"
            for r in results["references"]
        ],
        results=results,
        dataset=_dataset(config, results),
        pictures=(
            Picture(
                "stiff.png",
                "Error against evaluations and seconds at each D: filled equal steps, open adaptive, dotted the target.",
                lambda: cost_plot(content),
            ),
        ),
    )


def cells(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """A run as a line of the table; what was extrapolated has a ~."""
    mark = "~" if record["extrapolated"] else ""
    costs = (
        mark + format(record[key], spec) for key, spec in (("steps", ".0f"), ("evaluations", ".0f"), ("seconds", ".3g"))
    )
    steps, evaluations, seconds = costs
    solver, d, tolerance = (record[key] for key in ("solver", "D", "tolerance"))
    return solver, d, tolerance, steps, evaluations, record["error"], seconds, record["peak_mb"]


def _dataset(config: StiffConfig, results: Mapping[str, Any]) -> xr.Dataset:
    """One entry per run."""
    cost = results["cost"]
    columns = {}
    for key in ("error", "steps", "rejected", "evaluations", "seconds", "peak_mb", "tolerance", "D"):
        columns[key] = ("run", np.asarray([np.nan if r[key] is None else r[key] for r in cost], float))
    for key in ("extrapolated", "reached"):
        columns[key] = ("run", np.asarray([int(r[key]) for r in cost]))
    return xr.Dataset(
        columns,
        coords={"solver": ("run", [r["solver"] for r in cost])},
        attrs={"study": "stiff", "depth": float(results["depth"]), "seed": int(config.seed)},
    )


STIFF = Study(
    name="stiff",
    title="Cost to accuracy as diffusion makes the field stiff",
    question="What does each solver cost, in evaluations, time and memory, to a given error?",
    source="",
    measure=measure,
    judge=judge,
    identity=lambda config: settings(config, without=("solvers", "diffusivities")),
    columns=COLUMNS,
    cells=cells,
)
