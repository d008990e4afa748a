"""The phase diagram of tokens under attention: where in inverse temperature, number and depth do they draw together?"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.integrate import cumulative_simpson, simpson

from pdejax._arguments import checked
from pdejax._bootstrap import bootstrap
from pdejax.exact import equiangular_rate
from pdejax.runs._files import ResultError
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Column, Table
from pdejax.runs.sweep import Sweep, collect_sweep, run_sweep
from pdejax.studies.phases._config import PhasesConfig
from pdejax.studies.phases._measure import measure_run
from pdejax.studies.phases._pictures import map_plot
from pdejax.studies.study import Evidence, Judgement, Study, run

HALF = 0.5  # mean cosine at the border between apart and aligned
RESAMPLES = 200
AXES = ("beta", "tokens", "normalization")
DIGITS = 3
NODES = 513  # of the closed form's integrals over the cosine


@checked
def phase_diagram(config: PhasesConfig | None = None, *, report: Callable[[str], None] | None = None) -> Result:
    """Measure the phase diagram of tokens under attention, in the caller's precision.

    With `config.out` the runs lie in a zarr store there (see `pdejax.runs.sweep.run_sweep`), an interrupted study goes on, and
    `phases.json` and pictures are written. `results` has, by `beta`, `tokens`, `normalization` and `depth`, the mean over seeds
    of the cosine of two tokens and of the number of clusters, and `border`, the depth at which that cosine first exceeds ½.

    Raises `ResultError` for a folder that cannot be written or where another process is still at a part of it, `ImportError`
    without zarr where there is a folder.
    """
    config = PhasesConfig() if config is None else config
    return run(PHASES, config, out=config.out, report=report)


def phase_sweep(config: PhasesConfig) -> Sweep:
    """Return the sweep that a configuration stands for."""
    betas = np.geomspace(config.beta_low, config.beta_high, config.betas)
    # Rounded, so that machines whose powers differ in the last digit have the same points.
    depths = tuple(float(f"{t:.6g}") for t in np.geomspace(config.t1 / 64, config.t1, config.depths))
    measure = functools.partial(measure_run, dim=config.dim, depths=depths, step=float(config.step), close=config.close)
    return Sweep(
        name="phases",
        measure=measure,
        axes={
            "beta": tuple(float(f"{b:.6g}") for b in betas),
            "tokens": tuple(config.tokens),
            "normalization": tuple(config.normalization),
        },
        static=("tokens",),
        seeds=config.seeds,
        dims={"cosine": ("depth",), "clusters": ("depth",)},
        coords={"depth": depths},
        chunk=config.chunk,
        lanes=config.lanes,
        base=config.seed,
        attrs={"title": "tokens under attention with identity weights", "close": config.close, "dim": config.dim},
        given={"dim": config.dim, "step": config.step, "close": config.close},
    )


def measure(config: PhasesConfig, seed: int, parts: Parts) -> Evidence:
    """Measure what is missing, and average over seeds."""
    del seed  # the configuration's own
    sweep = phase_sweep(config)
    if parts.folder is None:
        data = collect_sweep(sweep, report=parts.say)
    else:
        progress = run_sweep(sweep, parts.folder, shard="0/1", report=parts.say)
        parts.kept_seconds += progress.kept_seconds
        if not progress.complete:  # what is not measured yet reads as NaN, or 0
            raise ResultError(
                f"{parts.folder}: {progress.chunks - progress.done} of {progress.chunks} chunks are another process's; run "
                "again when it is done."
            )
        data = progress.dataset().load()
    return summarize(data)


def summarize(data: xr.Dataset) -> dict[str, Any]:
    """Means over seeds, how many runs are not finite, and the border with its interval."""
    cosine = np.asarray(data.cosine, float)  # (beta, tokens, normalization, seed, depth)
    log_depth = np.log(np.asarray(data.depth, float))
    # Tokens that are not finite are near none: n clusters, which is no measurement.
    clusters = np.where(np.isfinite(cosine), np.asarray(data.clusters, float), np.nan)
    seeds = cosine.shape[3]
    samples = jnp.asarray(np.moveaxis(cosine, 3, 0))
    found = bootstrap(
        lambda w: crossing(jnp.tensordot(w, samples, 1) / seeds, jnp.asarray(log_depth, samples.dtype)),
        seeds,
        key=jax.random.key(0),
        resamples=RESAMPLES,
        dtype=samples.dtype,
    )
    border, low, high = (np.exp(np.asarray(x, float)) for x in (found.value, found.low, found.high))
    return {
        **{name: np.asarray(data[name]).tolist() for name in (*AXES, "depth")},
        "cosine": np.round(cosine.mean(axis=3), DIGITS),
        "clusters": np.round(clusters.mean(axis=3), DIGITS),
        "border": {"value": np.round(border, DIGITS), "low": np.round(low, DIGITS), "high": np.round(high, DIGITS)},
        "runs": int(np.prod(cosine.shape[:4])),
        "not_finite": int(np.sum(~np.isfinite(cosine).all(axis=4))),
    }


def crossing(cosine: Any, log_depth: Any) -> Any:
    """Log depth at which curves `(…, depths)` first exceed ½, linear between depths; the last depth where they do not, and NaN
    where a curve is not finite."""
    above = cosine > HALF
    at = jnp.clip(jnp.argmax(above, axis=-1), 1, cosine.shape[-1] - 1)
    high, low = (jnp.take_along_axis(cosine, k[..., None], axis=-1)[..., 0] for k in (at, at - 1))
    part = jnp.clip((HALF - low) / jnp.where(high > low, high - low, 1), 0, 1)
    inside = log_depth[at - 1] + part * (log_depth[at] - log_depth[at - 1])
    found = jnp.where(above.any(axis=-1), inside, log_depth[-1])
    return jnp.where(jnp.isfinite(cosine).all(axis=-1), found, jnp.nan)


def equiangular_border(
    beta: Sequence[float] | np.ndarray, tokens: int, normalization: str
) -> Float[np.ndarray, " betas"] | None:
    r"""Depth `(betas,)` at which the cosine of tokens that start orthogonal is ½, or None where no closed form is known.

    On the sphere $\tau = \int_0^{1/2} d\gamma/\gamma'$ with the rate of `pdejax.exact.equiangular_rate`; pre-norm is the same
    path on a slower clock, $t = \int r\,d\tau$, $r = e^\tau(1 + (n-1)\gamma)^{-1/2}$ (see `pdejax.exact.preln_equiangular`). By
    Simpson's rule.
    """
    if normalization not in ("sphere", "pre-norm"):
        return None
    gamma, b = np.linspace(0, HALF, NODES), np.asarray(beta, float)
    with jax.enable_x64(True):
        rate = np.asarray(equiangular_rate(gamma[None, :], b[:, None], tokens))
    # Where a rate is 0 in floating point, or e^τ ∞, the depth is beyond every diagram.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        clock = cumulative_simpson(1 / rate, x=gamma, axis=1, initial=0)
        if normalization == "sphere":
            found = clock[:, -1]
        else:
            radius = np.exp(clock) / np.sqrt(1 + (tokens - 1) * gamma)
            found = np.asarray(simpson(radius / rate, x=gamma, axis=1))
    return np.where(np.isnan(found), np.inf, found)


COLUMNS = (
    Column("normalization"),
    Column("tokens", "d", right=True),
    Column("β", ".3g", right=True),
    Column("aligned from depth", right=True),
    Column("equiangular", right=True),
    Column("clusters at the end", ".1f", right=True),
)


def _end(depth: float, edges: tuple[float, float]) -> str:
    """A depth; what lies at an edge of the diagram may lie anywhere beyond."""
    first, last = edges
    return f"beyond {last:g}" if depth >= last else f"by {first:g}" if depth <= first else f"{depth:.3g}"


def _text(border: Sequence[float], edges: tuple[float, float]) -> str:
    """A border, value, low and high, with its interval, which one at an edge of the diagram has not."""
    value, low, high = border
    if not np.isfinite([value, low, high]).all():
        return "not measured"
    inside = edges[0] < value < edges[1]
    return _end(value, edges) + (f" [{_end(low, edges)}, {_end(high, edges)}]" if inside else "")


def judge(config: PhasesConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Answer from the numbers: how deep must one go for tokens to align, and what does the normalization change?"""
    [found] = evidence
    lines, edges = [], (float(found["depth"][0]), float(found["depth"][-1]))
    border = {key: np.asarray(found["border"][key], float) for key in ("value", "low", "high")}
    clusters = np.asarray(found["clusters"], float)  # None, as JSON has it, is NaN
    for k, normalization in enumerate(found["normalization"]):
        for j, tokens in enumerate(found["tokens"]):
            exact = equiangular_border(found["beta"], int(tokens), normalization)
            for i in _shown(len(found["beta"])):
                text = _text([float(border[key][i, j, k]) for key in ("value", "low", "high")], edges)
                beside = "" if exact is None else _end(float(exact[i]), edges)
                left = float(clusters[i, j, k, -1])
                beta = float(found["beta"][i])
                lines.append((normalization, int(tokens), beta, text, beside, left if np.isfinite(left) else None))
    answers = verdicts(found)
    return Judgement(
        sentence=answers["aligned"],
        verdicts=answers,
        passed=not found["not_finite"],
        tables=(Table(COLUMNS, lines),),
        results=found,
        pictures=tuple(
            Picture(f"phases_{name}.png", caption, functools.partial(map_plot, found, name, equiangular_border))
            for name, caption in CAPTIONS.items()
        ),
    )


CAPTIONS = {
    "cosine": "Mean cosine of two tokens, by depth and inverse temperature β; the solid line is ½, the dashed one ½ of "
    "equiangular tokens in closed form.",
    "clusters": "Number of clusters of tokens, by depth and inverse temperature β.",
}


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    """Write one sentence per question, made from the numbers."""
    last, most = float(found["depth"][-1]), int(np.argmax(found["tokens"]))
    border, low, high = (np.asarray(found["border"][name], float) for name in ("value", "low", "high"))
    beta = np.asarray(found["beta"], float)
    parts = [
        f"{_range(beta, border[:, most, k], last)} ({normalization}{_open(beta, low[:, most, k], high[:, most, k], last)})"
        for k, normalization in enumerate(found["normalization"])
    ]
    answers = {"aligned": f"{found['tokens'][most]} tokens align by depth {last:g} for {', '.join(parts)}"}
    if beside := _ratios(found, border):
        answers["closed form"] = beside
    bad, runs, lost = found["not_finite"], found["runs"], int(np.isnan(border).sum())
    answers["runs"] = f"NOT finite: {bad} of {runs}" if bad else f"all {runs} finite"
    if lost:
        answers["runs"] += f"; not measured at {lost} of {border.size} points"
    return answers


def _range(beta: np.ndarray, border: np.ndarray, last: float) -> str:
    """The inverse temperatures whose tokens align inside the diagram: from the lowest on, and whether there are others."""
    measured = np.isfinite(border)
    if not measured.any():
        return "no β that is measured"
    beta, aligned = beta[measured], border[measured] < last
    run = int(np.argmin(np.append(aligned, False)))
    if not aligned.any():
        return f"no β ≥ {beta[0]:.3g}"
    if not aligned[run:].any():
        return f"β ≤ {beta[run - 1]:.3g}"
    highest = beta[np.flatnonzero(aligned)[-1]]
    return (
        f"β ≤ {beta[run - 1]:.3g} and some up to {highest:.3g}" if run else f"some β ≤ {highest:.3g}, not for all below"
    )


def _open(beta: np.ndarray, low: np.ndarray, high: np.ndarray, last: float) -> str:
    """The inverse temperatures of which the interval lies on both sides of the last depth."""
    found = beta[(low < last) & (high >= last)]
    return f"; not decided at β = {', '.join(f'{x:.3g}' for x in found)}" if len(found) else ""


def _ratios(found: Mapping[str, Any], border: np.ndarray) -> str:
    """Say how many times as deep as in closed form the border lies, "" where there is nothing to compare.

    A border beyond the diagram bounds its ratio from below, one before its first depth from above.
    """
    first, last = float(found["depth"][0]), float(found["depth"][-1])
    rows = []
    for k, normalization in enumerate(found["normalization"]):
        for j, tokens in enumerate(found["tokens"]):
            exact = equiangular_border(found["beta"], int(tokens), normalization)
            if exact is not None:
                # Where the closed form lies outside as well there is nothing to compare.
                rows += [(b, b / x) for b, x in zip(border[:, j, k], exact, strict=True) if first < x < last]
    ratios = [ratio for b, ratio in rows if first < b < last]
    least, most = (
        [ratio for b, ratio in rows if outside(b)] for outside in (lambda b: b >= last, lambda b: b <= first)
    )
    if not rows or not [*ratios, *least, *most]:
        return ""
    # The smallest ratio and the largest, each with what it is known to be.
    low, what = min([(x, "") for x in ratios] + [(x, "at least ") for x in least] + [(x, "less than ") for x in most])
    high, where = max([(x, "") for x in ratios] + [(x, "more than ") for x in least] + [(x, "at most ") for x in most])
    edges = ", borders outside the diagram counted as at its edge" if least or most else ""
    return f"tokens from random directions align {what}{low:.2f} to {where}{high:.2f} times as deep as equiangular ones{edges}"


def _shown(count: int) -> list[int]:
    """Inverse temperatures of the table: the lowest, that at a third, two thirds, and the highest."""
    return sorted({round(share * (count - 1)) for share in (0, 1 / 3, 2 / 3, 1)})


PHASES = Study(
    name="phases",
    title="Tokens under attention: where they draw together",
    question="At which inverse temperature, number of tokens and depth do tokens align, and what does normalization change?",
    source="arXiv 2312.10794, Figure 4",
    measure=measure,
    judge=judge,
    command="sweep",
    double=False,
)
