"""The study of limits: many layers, many tokens, long depth, noise that tokens share."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import beta as beta_law

from pdejax._arguments import checked
from pdejax._figure import Figure
from pdejax.analysis.limits._exponents import near
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Column, Table
from pdejax.studies.limits import _pictures as pictures
from pdejax.studies.limits._config import NAMES, LimitsConfig
from pdejax.studies.limits._sections import (
    EXPONENTS,
    check_section,
    closures_section,
    metastability_section,
    noise_section,
    summary,
)
from pdejax.studies.study import Evidence, Judgement, Study, failed, run

PERCENT = 0.01  # of the critical line
WIDE = 0.15  # exponents are known to so much, or not decided
ORDER = 0.25  # orders, halfway from 1 to ½
SLOPE = 0.02  # of waiting times
BIAS = 0.03  # of networks of 64 layers, in a share or a mean cosine
FALL = 1e-9  # of the energy's height, by rounding
COLUMNS = (
    Column("recipe", width=30),
    Column("limit", width=20),
    *(Column(head, "d", 9, right=True) for head in ("checks", "right", "undecided", "wrong")),
    Column("power", ".2f", 6, right=True),
    *(Column(head, "+.2f", 10, right=True) for head in EXPONENTS),
)


@checked
def limits(
    config: LimitsConfig | None = None,
    *,
    report: Callable[[str], None] | None = None,
    row: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Run the study in float64, without touching the caller's precision setting.

    `report(text)` is told what is being measured, `row(record)` gets each recipe as soon as it has been checked. With
    `config.out` every check and every piece is saved when finished, an interrupted study resumes, and `limits.json`,
    `limits.nc` and a picture per section are written. `results` has an entry per section.

    Raises `ValueError` for a configuration that cannot be run, `ResultError` for a folder that cannot be written.
    """
    config = LimitsConfig() if config is None else config
    return run(LIMITS, config, out=config.out, report=report, row=row)


def measure(config: LimitsConfig, seed: int, parts: Parts) -> Evidence:
    """Measure the sections, part by part."""
    del seed  # the configuration's own
    how = {
        "check": check_section,
        "closures": closures_section,
        "metastability": metastability_section,
        "noise": noise_section,
    }
    return {name: how[name](config, parts) for name in how if name in config.sections}


def compared(value: float | None, ci: float | None, target: float, *, margin: float = WIDE) -> str:
    """`""` if the whole interval lies within the margin of the target, else "NOT …" where it leaves the target out, or why
    nothing is decided."""
    if value is None or ci is None or not (math.isfinite(value) and math.isfinite(ci)):
        return "not measurable"
    if near(Figure(value, value - ci, value + ci), target, margin):
        return ""
    if abs(value - target) > ci:
        return f"NOT {target:.4g} but {value:.4g} ± {ci:.2g}"
    return f"not decided: {value:.4g} ± {ci:.2g} for {target:.4g}"


def verdicts(results: Mapping[str, Any]) -> dict[str, str]:
    """Answers by question, made from the numbers."""
    found: dict[str, str] = {}
    if "check" in results:
        found["coordinate check"] = _checked(results["check"])
    for record in results.get("closures", ()):
        value, low, _ = record["exponent"]
        ci = None if low is None or value is None else value - low
        bad = compared(value, ci, -0.5)
        said = f"the gap falls as {record['over']}^({_number(value)} ± {_number(ci)}), within {WIDE:g} of −½"
        found[f"closure: {record['closure']}"] = bad or said
    if "metastability" in results:
        found |= _slow(results["metastability"])
    if "noise" in results:
        found |= _noisy(results["noise"])
    return found


def _checked(records: Sequence[Mapping[str, Any]]) -> str:
    """How many of the decided verdicts are wrong, with the exact 95 % upper bound of the rate where checks are independent."""
    rows = [summary(records, name) for name in NAMES if any(r["recipe"] == name for r in records)]
    checks, wrong, right = (sum(row[key] for row in rows) for key in ("checks", "wrong", "right"))
    decided = wrong + right
    keys = {tuple(r["key"]) for r in records if "key" in r}
    if len(keys) < len(records):
        bound = "no bound of the rate: checks share their draws"
    else:
        most = float(beta_law.ppf(0.95, wrong + 1, right)) if right else 1.0
        bound = f"rate at most {most:.1%} at 95 %"
    said = f"{wrong} of {decided} decided verdicts wrong ({bound}), {checks - decided} of {checks} not decided"
    where = [row["recipe"] for row in rows if row["wrong"]]
    return f"NOT as it should be: {said}; wrong on {', '.join(where)}" if wrong else said


def _slow(results: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for record in results["waiting"]:
        value, low, _ = record["slope"]
        ci = None if low is None or value is None else value - low
        bad = compared(value, ci, record["expected"], margin=SLOPE)
        said = f"d ln T/dβ → {_number(value, 4)} ± {_number(ci, 4)}, within {SLOPE:g} of 1 − cos ω₀ = {record['expected']:.4f}"
        found[f"waiting at ω₀ = {record['angle']:g}"] = bad or said
    stairs = results["staircase"]
    energies = _floats(stairs["energies"])
    falls = float(np.min(np.diff(energies)))
    said = f"{len(stairs['merged'])} mergers over {stairs['ts'][-1]:.1g} of depth in {stairs['steps']} steps"
    if not np.all(np.isfinite(energies)):
        said = f"not measurable, energies are not finite: {said}"
    elif not falls >= -FALL:
        said = f"NOT rising: it falls by {-falls:.1g} of its height; {said}"
    else:
        said = f"{said}, rising to {FALL:g} of its height"
    found["energy staircase"] = said
    return found


def _noisy(results: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for record in results["orders"]:
        bad = compared(record["order"], record["ci"], 1.0, margin=ORDER)
        said = f"weak order {_number(record['order'])} ± {_number(record['ci'])}, within {ORDER:g} of 1"
        found[f"{record['system']}, {record['moment']}"] = bad or said
    *ours, exact = results["diffrax"]
    said = ", ".join(f"{r['by']} {_number(r['mean'], 4)} ± {_number(r['ci'], 4)}" for r in ours)
    said += f"; {_number(exact['mean'], 4)} by its equation"
    rows = [(r["by"], r["mean"], r["ci"], exact["mean"]) for r in ours]
    found["mean cosine in both senses"] = _measurable(
        [*ours, exact], ("mean", "ci"), _within(rows, "NOT one law", said)
    )
    found["critical line"] = _measurable(
        results["critical"], ("critical", "ci", "expected"), _on_line(results["critical"])
    )
    shares = results["antipodal"]
    said = ", ".join(f"{_number(r['share'])} ± {_number(r['ci'])} for {_number(r['expected'])}" for r in shares)
    rows = [(f"β = {r['beta']:g}", r["share"], r["ci"], r["expected"]) for r in shares]
    found["tokens that end opposite"] = _measurable(shares, ("share", "ci", "expected"), _within(rows, "NOT it", said))
    return found


def _within(rows: Sequence[tuple[str, Any, Any, Any]], wrong: str, said: str) -> str:
    """Whether values with their intervals, by name, lie within what 64 layers may be off; what that rests on is said."""
    names = [name for name, *_ in rows]
    value, ci, target = (np.asarray([_float(x) for x in column], float) for column in list(zip(*rows, strict=True))[1:])
    off = np.abs(value - target)
    out = [name for name, far in zip(names, off - ci > BIAS, strict=True) if far]
    if out:
        return f"{wrong} ({', '.join(out)}): {said}"
    most = f"within {float(np.max(off + ci)):.3f} with intervals, {BIAS:g} allowed to 64 layers"
    alone = [name for name, far in zip(names, off > ci, strict=True) if far]
    most += f"; beyond the interval alone: {', '.join(alone)}" if alone else ""
    return f"{'' if np.all(off + ci <= BIAS) else 'not decided: '}{said}; {most}"


def _on_line(records: Sequence[Mapping[str, Any]]) -> str:
    """How far the critical β are from the closed form."""
    ours, ci, exact = (np.array([_float(r[name]) for r in records]) for name in ("critical", "ci", "expected"))
    off = np.abs(ours - exact)
    most = float(np.max((off + ci) / exact))
    bad = [str(r["d"]) for r, far in zip(records, off > ci + PERCENT * exact, strict=True) if far]
    said = (
        f"within {float(np.max(off / exact)):.2%} of ½ arcosh(d − 2), {most:.2%} with intervals, {PERCENT:.0%} allowed"
    )
    if bad:
        return f"NOT on the critical line in d = {', '.join(bad)}: {said}"
    return said if most <= PERCENT else f"not decided to 1 %: {said}"


def _measurable(records: Sequence[Mapping[str, Any]], names: Sequence[str], said: str) -> str:
    """The answer, or that there is none: what is missing or NaN agrees with nothing and contradicts nothing."""
    lost = [f"{_label(r)} ({name})" for r in records for name in names if not math.isfinite(_float(r[name]))]
    return f"not measurable: {', '.join(lost)}" if lost else said


def _label(record: Mapping[str, Any]) -> str:
    """What a record of noise is of."""
    return (
        next(f"{key} = {record[key]:g}" for key in ("beta", "d") if key in record)
        if "by" not in record
        else record["by"]
    )


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(_float(value)) else "?"


def judge(config: LimitsConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Answer from the numbers."""
    [results] = evidence
    answers = verdicts(results)
    wrong = failed(answers)
    open_ones = [name for name, answer in answers.items() if answer.startswith(("not decided", "not measurable"))]
    if wrong:
        said = f"not as it should be: {', '.join(wrong)}"
    elif open_ones:
        said = f"nothing is wrong; not decided: {', '.join(open_ones)}"
    else:
        said = "all limits are as they should be"
    return Judgement(
        sentence=said,
        verdicts=answers,
        passed=not wrong,
        tables=tables(results),
        results=results,
        dataset=dataset(config, results),
        pictures=[
            Picture(f"{name}.png", text, lambda draw=draw, name=name: draw(results[name]))
            for name, text, draw in pictures.ALL
            if name in results
        ],
    )


def tables(results: Mapping[str, Any]) -> list[Table]:
    """A table per section; that of the checks is the one that grows."""
    records = results.get("check", [])
    rows = [cells(summary(records, name)) for name in NAMES if any(r["recipe"] == name for r in records)]
    found = [Table(COLUMNS, rows)]
    if "closures" in results:
        columns = (
            Column("closure"),
            Column("over"),
            Column("gap, fewest", ".2e"),
            Column("gap, most", ".2e"),
            *_INTERVAL,
        )
        lines = [
            (r["closure"], r["over"], r["gaps"][0], r["gaps"][-1], *r["exponent"], -0.5) for r in results["closures"]
        ]
        found.append(Table(columns, lines, "Closures"))
    if "metastability" in results:
        lines = [
            (f"d ln T/dβ at ω₀ = {r['angle']:g}", *r["slope"], r["expected"])
            for r in results["metastability"]["waiting"]
        ]
        found.append(Table((Column("waiting"), *_INTERVAL), lines, "Metastability"))
    if "noise" in results:
        found.append(Table((Column("noise"), *_INTERVAL), _noise_lines(results["noise"]), "Noise common to all tokens"))
    return found


_INTERVAL = tuple(Column(head, ".4f", right=True) for head in ("measured", "low", "high", "expected"))


def _noise_lines(results: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    def line(name: str, value: Any, ci: Any, expected: float) -> tuple[Any, ...]:
        if value is None or ci is None:
            return name, value, None, None, expected
        return name, value, value - ci, value + ci, expected

    exact = results["diffrax"][-1]["mean"]
    return [
        *(line(f"weak order: {r['system']}, {r['moment']}", r["order"], r["ci"], 1.0) for r in results["orders"]),
        *(line(f"mean cosine: {r['by']}", r["mean"], r["ci"], exact) for r in results["diffrax"][:-1]),
        *(line(f"critical β, d = {r['d']}", r["critical"], r["ci"], r["expected"]) for r in results["critical"]),
        *(
            line(f"share opposite, β = {r['beta']:g}, d = {r['d']}", r["share"], r["ci"], r["expected"])
            for r in results["antipodal"]
        ),
    ]


def cells(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """A recipe as a line of the table."""
    names = (
        "recipe",
        "limit",
        "checks",
        "right",
        "undecided",
        "wrong",
        "power",
        *EXPONENTS,
    )
    return tuple(record[name] for name in names)


def dataset(config: LimitsConfig, results: Mapping[str, Any]) -> xr.Dataset:
    """All curves: checks by recipe and repeat, gaps, waiting times, the staircase, rates about the critical line."""
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    if results.get("check"):
        records = results["check"]
        coords |= {"layers": list(config.layers), "check": [f"{r['recipe']} #{i}" for i, r in enumerate(records)]}
        for name in ("states", "increments", "coarse", "parity", "draws", "largest"):
            data[name] = (("check", "layers"), np.asarray([_floats(r["values"][name]) for r in records]))
        # Of the first check of each recipe.
        for name in ("weight gradients", "input gradients"):
            rows = [r["values"].get(name, [None] * len(config.layers)) for r in records]
            data[name.replace(" ", "_")] = (("check", "layers"), np.asarray([_floats(row) for row in rows]))
        data["verdict"] = ("check", [r["verdict"] for r in records])
    for record in results.get("closures", ()):
        name = record["closure"].lower()
        data[f"gap_{name}"] = (f"size_{name}", _floats(record["gaps"]))
        coords[f"size_{name}"] = record["sizes"]
    if "metastability" in results:
        waiting, stairs = results["metastability"]["waiting"], results["metastability"]["staircase"]
        coords |= {"angle": [r["angle"] for r in waiting], "wait": sorted(config.waits), "t": _floats(stairs["ts"])}
        data["waiting_time"] = (("angle", "wait"), np.asarray([_floats(r["times"]) for r in waiting]))
        data["energy"] = ("t", _floats(stairs["energies"]))
    if "noise" in results:
        critical = results["noise"]["critical"]
        coords["dim"] = [r["d"] for r in critical]
        for name in ("critical", "expected", "ci"):
            data[f"beta_{name}"] = ("dim", _floats([r[name] for r in critical]))
    return xr.Dataset(data, coords=coords, attrs={"study": "limits", "seed": int(config.seed)})


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.asarray([_float(value) for value in values], float)


LIMITS = Study(
    name="limits",
    title="Which limit",
    question="Which limit do deep networks have, and how far are tokens from their closures?",
    source="",
    measure=measure,
    judge=judge,
    identity=lambda config: {"seed": config.seed},
    columns=COLUMNS,
    cells=cells,
)
