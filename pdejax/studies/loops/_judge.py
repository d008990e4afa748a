"""What follows from the numbers of a loop."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from pdejax._bootstrap import over_seeds
from pdejax._figure import Figure
from pdejax.analysis.loops._exits import share_of
from pdejax.analysis.loops._kinds import KINDS
from pdejax.runs._table import Column, Table
from pdejax.studies.loops._answers import exits, foreseen, reach, safe
from pdejax.studies.loops._config import LoopsConfig
from pdejax.studies.loops._found import Found, Inputs
from pdejax.studies.loops._measure import ESTIMATES
from pdejax.studies.loops._pictures import pictures
from pdejax.studies.study import Evidence, Judgement

SAME = 1e-6  # relative distance up to which two fixed points are one
CERTIFIED = 1e-9  # relative residual of a point that counts


def judge(config: LoopsConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Turn the numbers of all inputs into figures, tables and answers."""
    [found] = evidence
    facts, inputs, out = found["subject"], found["inputs"], Found()
    counts = _kinds(inputs, out)
    _memory(inputs, out)
    _exponents(inputs, out)
    _sub_layers(facts, inputs, out)
    exits(config, facts, inputs, out)
    far = safe(config, facts, inputs, out)
    foreseen(config, inputs, out)
    _estimates(inputs, out)
    main = max(counts, key=lambda kind: counts[kind])
    most = 2 * counts[main] > len(inputs)
    kinds = f"{main} for {counts[main]}" if most else out.verdicts["what it does"]
    sentence = f"{facts['name']} as a loop: {kinds} of {len(inputs)} inputs"
    if far is not None:
        sentence += f"; its answers are safe {reach(far, config.share)}"
    out.results |= {
        "name": facts["name"],
        "network": facts["loop"],
        "sequences": len(inputs),
        "data": facts["data"],
    }
    uncertified = _uncertified(inputs)
    if uncertified:
        out.verdicts["residuals"] = f"NOT certified: {uncertified} points have a relative residual above {CERTIFIED:g}"
    return Judgement(
        sentence=f"{sentence}.",
        verdicts=out.verdicts,
        passed=not uncertified,
        rows=out.rows,
        tables=out.tables,
        notes=[f"{facts['loop']}; {facts['data']}", *out.notes],
        results=out.results,
        dataset=dataset(facts, inputs),
        pictures=pictures(found, config.share),
    )


def _uncertified(inputs: Inputs) -> int:
    points = [float(x["relative"]) for x in inputs if KINDS[int(x["kind"])] in ("fixed point", "cycle")]
    # NaN is no certificate.
    return sum(not residual <= CERTIFIED for residual in points)


def _kinds(inputs: Inputs, out: Found) -> dict[str, int]:
    """The table of kinds, and how many inputs are of each."""
    kinds = [KINDS[int(x["kind"])] for x in inputs]
    counts = {kind: kinds.count(kind) for kind in KINDS}
    lines = []
    for kind in KINDS:
        own = [x for x, its in zip(inputs, kinds, strict=True) if its == kind]
        if not own:
            continue
        periods = sorted({int(x["period"]) for x in own if int(x["period"])})
        residuals = [float(x["relative"]) for x in own if math.isfinite(float(x["relative"]))]
        lines.append(
            (
                kind,
                len(own),
                " ".join(map(str, periods)) or "–",
                _mean([float(x["rate"]) for x in own]),
                max(residuals) if residuals else None,
                _mean([float(x["exponent"]) for x in own]),
                _mean([float(x["growth"]) for x in own]),
            )
        )
    columns = [
        Column("kind"),
        Column("inputs", "d", right=True),
        Column("periods"),
        Column("factor per pass", right=True),
        Column("largest relative residual", ".0e", right=True),
        Column("largest exponent", right=True),
        Column("growth k^a", right=True),
    ]
    out.tables.append(Table(columns, lines, "What the loop does, input by input"))
    for kind, count in counts.items():
        if count:
            out.row(f"share of inputs: {kind}", share_of([k == kind for k in kinds]))
    out.results["kinds"] = counts
    out.verdicts["what it does"] = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
    return counts


def _memory(inputs: Inputs, out: Found) -> None:
    """Whether the fixed points tell the inputs apart, by their mean tokens."""
    tokens = [x["mean token"] for x in inputs if KINDS[int(x["kind"])] == "fixed point"]
    if len(tokens) < 2:
        return
    points = np.asarray(tokens, float)
    middle = points.mean(axis=0)
    spread = np.linalg.norm(points - middle, axis=1) / max(float(np.linalg.norm(middle)), 1e-300)
    out.row("distance of an input's fixed point from their mean", over_seeds(spread), note="mean tokens, relative")
    # About any of them: one that is elsewhere moves their mean.
    near = np.linalg.norm(points[:, None] - points[None], axis=2) <= SAME * np.linalg.norm(points, axis=1)[:, None]
    same = int(near.sum(axis=1).max())
    out.results["fixed points"] = {"inputs": len(points), "the same": same, "spread": float(spread.mean())}
    out.verdicts["memory"] = (
        f"{same} of {len(points)} inputs that settle share the mean token of their fixed points, which forgets the input"
        if same > len(points) / 2
        else f"the mean tokens of the fixed points tell the inputs apart, {float(spread.mean()):.2g} from their mean"
        + (f"; at most {same} of {len(points)} share one" if same > 1 else "")
    )


def _mean(values: Sequence[float]) -> Figure | None:
    known = np.asarray([x for x in values if math.isfinite(x)])
    return over_seeds(known) if len(known) else None


def _exponents(inputs: Inputs, out: Found) -> None:
    """Largest exponents with intervals over inputs, and the radius after training and at the points."""
    k = min(len(x["exponents"]) for x in inputs)
    all_of = np.asarray([x["exponents"][:k] for x in inputs], float)
    for i in range(k):
        known = all_of[np.isfinite(all_of[:, i]), i]
        if len(known):
            out.row(f"Lyapunov exponent {i + 1}", over_seeds(known), unit="per pass", note=_of(len(known), len(inputs)))
    for name, text in (("trained", "after the trained passes"), ("point", "at the point or cycle")):
        radii = [np.hypot(x[f"{name} real"][0], x[f"{name} imaginary"][0]) for x in inputs if f"{name} real" in x]
        if name == "point":
            radii = [float(x["rate"]) for x in inputs]
        known = np.asarray([r for r in radii if math.isfinite(r)])
        if len(known):
            out.row(f"spectral radius {text}", over_seeds(known), unit="per pass", note=_of(len(known), len(inputs)))
            out.results[f"radius {name}"] = {"mean": float(known.mean()), "least": known.min(), "largest": known.max()}
    real = [np.abs(x["trained imaginary"][0]) < 1e-9 for x in inputs if "trained real" in x]
    if real:
        out.results["dominant eigenvalue complex"] = float(1 - np.mean(real))


def _of(count: int, total: int) -> str:
    return "" if count == total else f"{count} of {total} inputs"


def _sub_layers(facts: Mapping[str, Any], inputs: Inputs, out: Found) -> None:
    own = [x for x in inputs if "sub-layer gains" in x]
    if not own:
        return
    norms, gains = (np.asarray([x[f"sub-layer {name}"] for x in own], float) for name in ("norms", "gains"))
    lines = [
        (name, _mean(norms[:, i].tolist()), _mean(gains[:, i].tolist())) for i, name in enumerate(facts["sub-layers"])
    ]
    lines.append(("all: product", _mean(np.prod(norms, axis=1).tolist()), _mean(np.prod(gains, axis=1).tolist())))
    columns = [
        Column("sub-layer"),
        Column("norm of its Jacobian", right=True),
        Column("gain on the dominant direction", right=True),
    ]
    where = (
        "at the fixed points"
        if all(x["at point"] for x in own)
        else "after the trained passes, at fixed points where there are"
    )
    out.tables.append(Table(columns, lines, f"Contraction per sub-layer, {where}"))
    mean = np.exp(np.nanmean(np.log(np.maximum(gains, 1e-300)), axis=0))
    out.results["gains"] = dict(zip(facts["sub-layers"], mean.tolist(), strict=True))


def _estimates(inputs: Inputs, out: Found) -> None:
    """The cheap estimates beside the radius."""
    measured = [x for x in inputs if "estimates" in x and math.isfinite(float(x["radius"]))]
    own = [x for x in measured if _residual(x) <= CERTIFIED]
    if len(own) < len(measured):
        out.notes.append(
            f"{len(measured) - len(own)} of {len(measured)} spectral radii left out beside the cheap estimates: no eigenvalue "
            f"with a relative residual of {CERTIFIED:g} or less"
        )
    if not own:
        return
    radii = np.asarray([float(x["radius"]) for x in own])
    table = np.asarray([x["estimates"] for x in own], float)  # (inputs, estimates, 4)
    lines, numbers = [], {}
    for i, name in enumerate(ESTIMATES):
        values, wrong = table[:, i, 0], table[:, i, 3]
        known = np.isfinite(values)
        if not known.any():
            continue
        error = np.abs(values[known] / radii[known] - 1)
        share = _wrong(wrong[known])
        # 1 − ρ decides how many passes are safe, or needed.
        gap = np.abs(values[known] - radii[known]) / np.maximum(np.abs(1 - radii[known]), 1e-12)
        lines.append(
            (
                name,
                over_seeds(values[known]),
                over_seeds(values[known] / radii[known]),
                float(error.max()),
                float(np.median(gap)),
                share,
            )
        )
        numbers[name] = {
            "ratio": float(np.mean(values[known] / radii[known])),
            "largest relative error": float(error.max()),
            "error over |1 − ρ|, median": float(np.median(gap)),
            "wrong side of 1": float(share),
        }
    columns = [
        Column("estimate"),
        Column("its value", right=True),
        Column("over the radius", right=True),
        Column("largest relative error", ".0%", right=True),
        Column("error over |1 − ρ|, median", ".2f", right=True),
        Column("wrong side of 1", right=True),
    ]
    name = f"spectral radius ρ, relative residual at most {max(map(_residual, own)):.0e}"
    lines.insert(0, (name, over_seeds(radii), None, None, None, None))
    out.tables.append(Table(columns, lines, f"Cheap estimates of the spectral radius beside it, {len(own)} inputs"))
    out.results["estimates"] = numbers
    worst = max(numbers, key=lambda name: numbers[name]["wrong side of 1"])
    if numbers[worst]["wrong side of 1"] > 0:
        said = f"{worst} is on the wrong side of 1 in {numbers[worst]['wrong side of 1']:.0%}, of {len(own)} inputs"
    else:
        said = f"none is on the wrong side of 1, of {len(own)} inputs"
    first = numbers[ESTIMATES[0]]
    out.verdicts["cheap estimates"] = (
        f"{said}; one random vector errs by {first['error over |1 − ρ|, median']:.2g} times |1 − ρ| in the median"
    )


def _residual(x: Mapping[str, Any]) -> float:
    """That of the dominant eigenvalue beside which the estimates stand, over it; infinite where the search did not end."""
    name = "point" if x["at point"] else "trained"
    if not x.get("radius converged", True):
        return math.inf
    residual = float(x[f"{name} residual"][0])
    # Of a nilpotent map the radius is 0.
    return residual / max(float(x["radius"]), 1e-6) if math.isfinite(residual) else math.inf


def _wrong(shares: np.ndarray) -> Figure:
    """The mean over inputs of the share of draws on the wrong side of 1; all alike, inputs are counted as yes or no."""
    whole = np.all((shares == 0) | (shares == 1))
    return share_of(shares > 0.5) if whole else over_seeds(shares, within=(0, 1))


def dataset(facts: Mapping[str, Any], inputs: Inputs) -> xr.Dataset:
    """All numbers by input; what an input has not is NaN."""
    names = sorted({name for x in inputs for name in x})
    variables: dict[str, Any] = {}
    for name in names:
        shape = next(np.shape(x[name]) for x in inputs if name in x)
        rows = [np.asarray(x[name], float) if name in x else np.full(shape, np.nan) for x in inputs]
        axes = ("input", *(_axis(name, i) for i in range(len(shape))))
        if name.endswith("imaginary") or name.endswith("real") or len({r.shape for r in rows}) == 1:
            variables[name.replace(" ", "_").replace("-", "_")] = (axes, np.stack(rows))
    return xr.Dataset(
        variables,
        attrs={
            "trained": int(facts["trained"]),
            "kinds": ", ".join(f"{i} {kind}" for i, kind in enumerate(KINDS)),
            "estimates": ", ".join(ESTIMATES),
            "sub_layers": ", ".join(facts["sub-layers"]),
        },
    )


def _axis(name: str, place: int) -> str:
    known = {
        "norms": ("state",),
        "distance": ("state",),
        "divergence": ("state",),
        "answers": ("state", "token"),
        "estimates": ("estimate", "figure"),
        "exponents": ("exponent",),
        "mean token": ("feature",),
    }
    if name in known:
        return known[name][place]
    if name == "steps" or name.startswith("score "):
        return "pass"
    return "sub_layer" if name.startswith("sub-layer") else "eigenvalue"
