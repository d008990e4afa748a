"""What becomes of the answers of a loop: when to leave it, how far they are safe, and whether their change is foreseen."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata

from pdejax._bootstrap import over_seeds
from pdejax._figure import Figure
from pdejax.analysis.loops import exit_rules, safe_range
from pdejax.analysis.loops._exits import RATE, ExitRule, share_of
from pdejax.runs._table import Column, Table
from pdejax.studies.loops._config import LoopsConfig
from pdejax.studies.loops._found import Found, Inputs
from pdejax.studies.loops._measure import SCORES

COMMON, MEDIAN = "commoner answer", "median pass"


def exits(config: LoopsConfig, facts: Mapping[str, Any], inputs: Inputs, out: Found) -> None:
    """What each criterion costs, to the fixed point and to the output of the trained passes."""
    settled = [x for x in inputs if "distance" in x]
    if len(settled) >= 4:
        errors = np.asarray([x["distance"][1:] for x in settled])
        _exit_table(config, settled, errors, f"within {config.error:g} of the fixed point, relative", "point", out)
    answered = [x for x in inputs if "divergence" in x]
    if len(answered) >= 4 and facts["trained"] > 1:
        # Up to the trained passes, after which the divergence from them says nothing of an exit.
        k = facts["trained"]
        errors = np.asarray([x["divergence"][1 : k + 1] for x in answered])
        errors = np.where(np.isfinite(errors), errors, np.inf)
        _exit_table(config, answered, errors, f"within {config.error:g} nats of the trained output", "output", out)


def _exit_table(config: LoopsConfig, inputs: Inputs, errors: np.ndarray, what: str, name: str, out: Found) -> None:
    k = errors.shape[1]
    scores = {s: np.asarray([x[f"score {s}"][:k] for x in inputs]) for s in SCORES if f"score {s}" in inputs[0]}
    rules = exit_rules(scores, errors, target=config.error, kept=config.share)
    good = [r for r in rules if float(r.kept) >= config.share]
    best = good[0] if good else None
    dearer = {} if best is None else {r.name: over_seeds((r.exits - best.exits).astype(float)) for r in rules}
    columns = [
        Column("criterion"),
        Column("threshold", ".1e", right=True),
        Column("passes", right=True),
        Column("inputs within the error", right=True),
        Column("passes more than the first, input by input", right=True),
    ]
    lines: list[Any] = [
        (
            r.name,
            r.threshold if math.isfinite(r.threshold) else None,
            r.loops,
            r.kept,
            None if r is best else dearer.get(r.name),
        )
        for r in rules
    ]
    oracle = rules[0].loops.nulls["oracle"]
    lines.append(("the fewest there could be", None, oracle, None, None))
    out.tables.append(Table(columns, lines, f"Leaving the loop {what}; thresholds cross-fitted, {len(inputs)} inputs"))
    results = {r.name: {"passes": float(r.loops), "kept": float(r.kept), "threshold": r.threshold} for r in rules}
    out.results[f"exits {name}"] = results | {"oracle": float(oracle)}
    if best is None:
        out.verdicts[f"exit, {name}"] = (
            f"no criterion keeps the error for {config.share:.0%} of inputs it was not fitted on"
        )
        return
    # Neither shown to be dearer nor to keep the error for too few.
    least = [r for r in rules if r is best or _may(r, dearer[r.name], config.share)]
    names = [r.name for r in least]
    out.results[f"exits {name}"]["least"] = names
    out.row(
        f"passes of the cheapest exit, {name}",
        best.loops.beside({"oracle": oracle}),
        null=oracle,
        null_name="oracle",
        note=", ".join(names),
    )

    def said(rule: ExitRule) -> str:
        return f"{rule.name} ({float(rule.loops):.1f} passes, kept by {float(rule.kept):.0%})"

    shown = ", ".join(map(said, least))
    cost = "costs least" if len(least) == 1 else "cost least, not told apart"
    others = [said(r) for r in rules if r.name == RATE and RATE not in names]
    out.verdicts[f"exit, {name}"] = "; ".join([f"{shown} {cost}", f"{float(oracle):.1f} would do", *others])


def _may(rule: ExitRule, dearer: Figure, share: float) -> bool:
    """Whether a criterion may be as cheap as the cheapest that keeps the error, and may keep it: both intervals say so."""
    return float(np.asarray(dearer.low)) <= 0 and float(np.asarray(rule.kept.high)) >= share


def safe(config: LoopsConfig, facts: Mapping[str, Any], inputs: Inputs, out: Found) -> Any:
    """How far beyond training answers stay, and what becomes of the accuracy."""
    if not facts["answers"]:
        out.verdicts["safe range"] = "not measured: the network has no answers"
        return None
    answers = np.stack([x["answers"] for x in inputs])
    trained = facts["trained"]
    found = safe_range(answers, trained=trained, share=config.share)
    last = answers.shape[1] - 1
    out.row(
        "safe range of loops",
        Figure(float(found.loops)),
        unit="passes",
        note=f"trained {trained}" + (f", followed to {last}" if found.censored else ""),
    )
    out.row(
        "safe range of loops, certain",
        Figure(float(found.certain)),
        unit="passes",
        note=nothing_certain(found, config.share)
        if found.certain <= trained
        else f"lower ends at {found.kept.level:.0%} above {config.share:.0%}, of {len(inputs)} inputs",
    )
    out.row("passes up to which an input's answer stays", over_seeds(np.asarray(found.per_input, float)), unit="passes")
    for k in sorted({min(trained * m, last) for m in (2, 4, 16)}):
        out.row(f"share of answers kept at {k} passes", found.kept[k])
    if all("label" in x for x in inputs):
        right = answers == np.asarray([int(x["label"]) for x in inputs])[:, None]
        for k in sorted({trained, *(min(trained * m, last) for m in (2, 4, 16))}):
            out.row(f"accuracy at {k} passes", share_of(right[:, k]))
        out.results["accuracy"] = right.mean(axis=0).tolist()
    out.results["safe range"] = {
        "loops": found.loops,
        "certain": found.certain,
        "trained": trained,
        "censored": found.censored,
        "kept": np.asarray(found.kept.value).tolist(),
    }
    out.verdicts["safe range"] = reach(found, config.share)
    return found


def reach(found: Any, share: float) -> str:
    if found.loops < found.trained:
        return f"nowhere: too few inputs have an answer at the {found.trained} passes of training"
    if found.loops == found.trained:
        return f"no further than the {found.trained} passes of training"
    level = f"{found.kept.level:.0%}"
    certain = (
        f"({nothing_certain(found, share)})"
        if found.certain == found.trained
        else f"(certain to {found.certain} at {level})"
    )
    at_least = "at least " if found.censored else ""
    factor = found.loops / found.trained
    return f"to {at_least}{found.loops} passes, {factor:.3g} times training {certain}"


def nothing_certain(found: Any, share: float) -> str:
    """That nothing beyond training is certain, and how many inputs that takes at least, all of which keep their answers."""
    needed = math.floor(math.log((1 - found.kept.level) / 2) / math.log(share)) + 1
    few = len(found.per_input) < needed
    return f"nothing beyond training is certain at {found.kept.level:.0%}" + (
        f": {needed} inputs are needed" if few else ""
    )


def foreseen(config: LoopsConfig, inputs: Inputs, out: Found) -> None:
    """Collapse foreseen from the spectrum after the trained passes, against that measured, and what knows nothing of it: the
    commoner answer, and the median pass."""
    # Where there is no answer at the trained passes nothing can change.
    own = [x for x in inputs if "foreseen" in x and int(x["changed"]) > 0]
    if not own:
        return
    ahead, true = (np.asarray([int(x[name]) for x in own]) for name in ("foreseen", "changed"))
    never = config.horizon + 1
    changes = true < never
    right = (ahead < never) == changes
    common = changes == (2 * changes.sum() >= len(own))
    null = share_of(common)
    out.row(
        "change of answer foreseen rightly, yes or no",
        share_of(right).beside({COMMON: null}),
        null=null,
        null_name=COMMON,
    )
    # Of the inputs on which the two differ.
    gained, lost = int(np.sum(right & ~common)), int(np.sum(common & ~right))
    better = gained > 0 and float(np.asarray(share_of(np.arange(gained + lost) < gained).low)) > 0.5
    beside = "more than" if better else "no better than" if gained <= lost else "not told apart from"
    text = (
        f"{int(right.sum())} of {len(own)} foreseen rightly to keep or change their answer in {config.horizon} passes, "
        f"{beside} the {int(common.sum())} of the commoner answer"
    )
    numbers: dict[str, Any] = {
        "right": float(right.mean()),
        COMMON: float(common.mean()),
        "changed": int(changes.sum()),
        "inputs": len(own),
    }
    both = (ahead < never) & changes
    if both.sum() >= 2:
        text += _when(ahead[both], true[both], numbers, out)
    median = float(np.median(true)), float(np.median(ahead))
    numbers |= {"measured median": median[0], "foreseen median": median[1]}
    out.results["foreseen"] = numbers
    out.verdicts["collapse foreseen"] = text


def _when(ahead: np.ndarray, true: np.ndarray, numbers: dict[str, Any], out: Found) -> str:
    """Of those foreseen to change that do: the pass, beside the median of the measured ones."""
    ratio = np.log(ahead / true)
    figure = over_seeds(ratio)
    factor = Figure(math.exp(float(figure)), np.exp(figure.low), np.exp(figure.high))
    count = f"{len(true)} inputs that change"
    out.row("passes to the change, foreseen over measured", factor, note=count)
    error, beside = np.abs(ratio), np.abs(np.log(np.median(true) / true))
    paired = over_seeds(error - beside)
    null = over_seeds(beside)
    out.row(
        "passes to the change, mean |log ratio|",
        over_seeds(error).beside({MEDIAN: null}, {MEDIAN: paired}),
        null=null,
        null_name=MEDIAN,
        note=count,
    )
    numbers |= {
        "factor": float(factor),
        "within a factor of 2": float(np.mean(error <= math.log(2))),
        "mean |log ratio|": float(error.mean()),
        "mean |log ratio| of the median": float(beside.mean()),
    }
    far = float(paired)
    nearer = "no nearer than" if far >= 0 else "nearer than" if np.asarray(paired.high) < 0 else "not told apart from"
    said = (
        f"; of those that do, the pass is foreseen at {float(factor):.2g} times the measured one, off by a factor of "
        f"{math.exp(error.mean()):.2g}, {nearer} their median, {math.exp(beside.mean()):.2g}"
    )
    rank = rank_correlation(ahead, true)
    if rank is None:
        return said
    out.row("passes to the change, rank correlation", rank, note=count)
    numbers["rank correlation"] = float(rank)
    low, high = (float(np.asarray(end)) for end in (rank.low, rank.high))
    return f"{said}; rank correlation {float(rank):.2f}, {low:.2f} to {high:.2f}"


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Figure | None:
    """Spearman's, with the interval of Bonett and Wright (2000, DOI 10.1007/BF02294183); None of fewer than 5 pairs, or of
    equal values."""
    if len(x) < 5 or np.all(x == x[0]) or np.all(y == y[0]):
        return None
    value = float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (len(x) - 3))
    z = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
    return Figure(value, math.tanh(z - half), math.tanh(z + half))
