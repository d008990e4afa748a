"""What the audits found, in sentences: every figure, count and name in them is read from the files that `pdejax audit` wrote."""

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

NEAR = 0.05
SIGNIFICANT = 0.05
IDENTICAL = 1e-4
LITTLE = 0.02  # a change of perplexity
TOLD = 0.5  # a fitted order of a wider half-width decides nothing
MATERIAL = 0.05  # an R² above its null by less explains nothing worth naming


class Audit(NamedTuple):
    """A network's name and what its audit keeps under `results`."""

    name: str
    found: dict[str, Any]

    def has(self, *keys: str) -> bool:
        """Whether there is a value under these keys, one inside the other."""
        value: Any = self.found
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value is not None


def sentences(folder: pathlib.Path) -> list[str]:
    """The findings of the audits in a folder, one sentence or two each; none where nothing was measured."""
    found = [json.loads(path.read_text())["results"] for path in sorted(folder.glob("*/result.json"))]
    audits = [Audit(results["name"], results) for results in found]
    return [text for finding in FINDINGS if (text := finding(audits))]


def _identity(audits: Sequence[Audit]) -> str:
    values = [(max(a.found["identity"].values()), a.name) for a in audits if a.has("identity")]
    if not values:
        return ""
    worst, name = max(values)
    same = sum(value <= IDENTICAL for value, _ in values)
    return (
        f"Layers that are run one by one, as Euler steps of a field, give the network itself in {same} of {len(values)}: the "
        f"largest relative difference of a state is {worst:.1e} ({name})."
    )


def _half(audits: Sequence[Audit]) -> str:
    values = [(a.found["refinement"]["half"]["value"], a.name) for a in audits if a.has("refinement", "half")]
    if not values:
        return ""
    near = sum(value < NEAR for value, _ in values)
    text = f"Half the step moves the last state by {_span(values)}; {_count(near, len(values))} moves by less than {NEAR:g}."
    index = [(a.found["refinement"]["index"], a.name) for a in audits if a.has("refinement", "index")]
    told = [
        (x, name) for x, name in index if 1 / (x["draws"] + 1) <= SIGNIFICANT and _numbers(x["p"], x["low"], x["high"])
    ]
    if told:
        more = [name for x, name in told if x["p"] <= SIGNIFICANT and x["low"] > 1]
        less = [name for x, name in told if x["p"] <= SIGNIFICANT and x["high"] < 1]
        text += (
            f" Beside untrained networks of their branch sizes, {_named(more)} move more, {_named(less)} less, and "
            f"{len(told) - len(more) - len(less)} of {len(told)} are not told apart; ratios are "
            f"{_span([(x['value'], name) for x, name in told])}."
        )
    return text


def _orders(audits: Sequence[Audit]) -> str:
    parts = []
    for scheme, words, order in (("euler", "Euler", 1), ("heun", "Heun", 2), ("rk4", "RK4", 4)):
        fits = [
            (a.found["refinement"]["orders"][scheme], a.name) for a in audits if a.has("refinement", "orders", scheme)
        ]
        told = [(x["value"], x["ci"], name) for x, name in fits if _numbers(x["value"], x["ci"]) and x["ci"] < TOLD]
        if not fits:
            continue
        holds = sum(abs(value - order) <= ci for value, ci, _ in told)
        shown = ", ".join(f"{value:.2f} ± {ci:.2f} ({name})" for value, ci, name in sorted(told))
        shown = f"{shown}, whose interval holds it in {_count(holds, len(told))}" if told else "none told"
        parts.append(f"{words}, of order {order}: {shown}; not decided in {len(fits) - len(told)} of {len(fits)}")
    if not parts:
        return ""
    return (
        f"Fitted orders of schemes for the layers' field, where the half-width is below {TOLD:g}. {'. '.join(parts)}."
    )


def _loss(audits: Sequence[Audit]) -> str:
    parts = []
    for a in audits:
        if a.has("loss"):
            loss, right, p = (a.found["loss"][name] for name in ("loss", "accuracy", "p"))
            parts.append(
                f"{a.name} from {loss[0]:.3g} to {loss[1]:.3g} nats (p = {p:.2g}), accuracy from {right[0]:.2f} to {right[1]:.2f}"
            )
    return f"Half the step in all layers takes the loss of {'; of '.join(parts)}." if parts else ""


def _windows(audits: Sequence[Audit]) -> str:
    parts = []
    for a in audits:
        spans = a.found.get("windows") or []
        if len(spans) < 4:
            continue
        inner, whole = spans[:-3], spans[-1]
        width = inner[0]["layers"][1] - inner[0]["layers"][0]
        if a.found["task"] == "next token" and a.has("loss"):
            count = a.found["layers"]
            middle = [w for w in inner if w["layers"][0] > 0 and w["layers"][1] < count] or inner
            changes = [math.expm1(w["loss"]) for w in middle]
            loss = a.found["loss"]["loss"]
            little = sum(abs(change) < LITTLE for change in changes)
            before, half, quarter = (f"{math.exp(x):,.0f}" for x in loss[:3])
            parts.append(
                f"in one of the {len(middle)} windows of {width} layers without the first and the last it changes the "
                f"perplexity of {a.name} by {min(changes):+.1%} to {max(changes):+.1%}, by less than {LITTLE:.0%} in {little}; "
                f"in all layers it takes it from {before} to {half}, and a quarter of the step to {quarter}"
            )
        else:
            moves = [w["move"]["value"] for w in inner]
            parts.append(
                f"windows of {width} layers move the last state of {a.name} by {min(moves):.2g} to {max(moves):.2g}, all layers "
                f"by {whole['move']['value']:.2g}"
            )
    return f"Half the step in a window: {'; '.join(parts)}." if parts else ""


def _weights(audits: Sequence[Audit]) -> str:
    parts = []
    for a in audits:
        if a.has("weights"):
            w = a.found["weights"]
            null = w["adjacent"]["nulls"]["layers shuffled"]
            parts.append(
                f"{a.name} {_ends(w['adjacent'])} (in random order {null:.2f}, p = {w['p']:.2g}), exponent {_ends(w['holder'])}"
            )
    text = f"Neighbouring layers' weights are correlated by: {'; '.join(parts)}." if parts else ""
    for a in audits:
        if moves := a.found.get("applications"):
            depth = a.found["layers"]
            text += (
                f" {a.name} is one layer, applied {depth} times: application {depth} moves the state by {moves[depth - 1]:.2g}, "
                f"and application {len(moves)} by {moves[-1]:.2g}."
            )
    return text.strip()


def _surgery(audits: Sequence[Audit]) -> str:
    there = [a for a in audits if a.has("surgery")]
    if not there:
        return ""
    skip = [(a.found["surgery"]["skip"]["value"], a.name) for a in there]
    text = f"Without one layer the last state moves by {_span(skip)} on average"
    for score in ("1 − cosine", "first-order estimate"):
        values = [(a.found["surgery"][score]["value"], a.name) for a in there if a.has("surgery", score)]
        values = [(value, name) for value, name in values if _numbers(value)]
        if values:
            text += f"; the rank correlation over layers with {score} is {_span(values, '.2f')}"
    return f"{text}."


def _exponents(audits: Sequence[Audit]) -> str:
    there = [a for a in audits if a.has("jacobians", "relative")]
    parts = []
    for a in there:
        relative, growth = (a.found["jacobians"][name] for name in ("relative", "growth"))
        beside = "".join(f", {name} {null:.2f}" for name, null in relative.get("nulls", {}).items())
        parts.append(f"{a.name} {_ends(relative)}{beside} (growth of the state {_ends(growth)})")
    return f"The largest exponent of relative changes, per layer: {'; '.join(parts)}." if parts else ""


def _tokens(audits: Sequence[Audit]) -> str:
    there = [a for a in audits if a.has("tokens", "cosine")]
    parts = [
        f"{a.name} from {t['cosine'][0]:.2f} to {t['cosine'][-1]:.2f}, effective rank from {t['effective_rank'][0]:.0f} to "
        f"{t['effective_rank'][-1]:.0f}"
        for a in there
        for t in [a.found["tokens"]]
    ]
    nearer = sum(a.found["tokens"]["cosine"][-1] > a.found["tokens"]["cosine"][0] for a in there)
    return (
        f"Tokens end nearer to one another than they begin in {nearer} of {len(there)}; the mean cosine of two goes "
        f"{'; '.join(parts)}."
        if parts
        else ""
    )


def _operators(audits: Sequence[Audit]) -> str:
    there = [a for a in audits if a.has("operators", "the papers' operators")]
    if not there:
        return ""
    papers = [(a.found["operators"]["the papers' operators"], a.name) for a in there]
    text = f"The held-out R² of the papers' operators for the layers' increments is {_span(papers, '.2f')}"
    tested = [
        a.found["operators"] | {"name": a.name}
        for a in there
        if a.has("operators", "difference", "low") and a.has("operators", "null")
    ]
    if tested:
        above = [x["name"] for x in tested if _above(x["the papers' operators"], x["null"], x["difference"]["low"])]
        text += f", above that of another sequence's operators in {_count(len(above), len(tested))}"
        text += f" ({', '.join(above)})" if above else ""
    own = [(a.found["operators"]["own terms"], a.name) for a in there if a.has("operators", "own terms")]
    if own:
        text += f"; of the networks' own terms it is {_span(own, '.2f')}"
    better = sum(a.found["operators"]["rollout"] < a.found["operators"]["persistence"] for a in there)
    text += "; over all layers, the papers' end nearer to the last state than the first state is"
    return f"{text} in {better} of {len(there)}."


def _above(value: float, null: float, low: Any) -> bool:
    """As the verdict: by the lower end of the difference's interval, and by as much as is worth naming."""
    return _numbers(low) and low > 0 and value > max(null, 0) + MATERIAL


FINDINGS: tuple[Callable[[Sequence[Audit]], str], ...] = (
    *(_identity, _half, _orders, _loss, _windows),
    *(_weights, _surgery, _exponents, _tokens, _operators),
)


def listed(folder: pathlib.Path) -> Iterator[str]:
    """The sentences as a numbered list of Markdown."""
    yield from (f"{i}. {text}" for i, text in enumerate(sentences(folder), start=1))


def _span(values: Sequence[tuple[float, str]], spec: str = ".3g") -> str:
    """The least and the largest of some values, with the networks they are of."""
    (low, first), (high, last) = min(values), max(values)
    return f"{low:{spec}} ({first})" if len(values) == 1 else f"{low:{spec}} ({first}) to {high:{spec}} ({last})"


def _ends(figure: Mapping[str, Any]) -> str:
    """A value with the ends of its interval, or in words that there are none."""
    if not _numbers(figure["value"], figure.get("low"), figure.get("high")):
        return f"{figure['value']:.2f} [no interval]" if _numbers(figure["value"]) else "not measured"
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def _named(names: Sequence[str]) -> str:
    return "none" if not names else f"{len(names)} ({', '.join(names)})"


def _count(some: int, whole: int) -> str:
    return "none" if not some else f"{some} of {whole}"


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
