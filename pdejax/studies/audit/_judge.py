"""What follows from an audit's numbers: intervals over sequences, nulls, verdicts, sentences. A pure function of the numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from pdejax._bootstrap import compare_all, over_seeds, smallest_p
from pdejax._figure import Figure
from pdejax.analysis.numerics import fit_order
from pdejax.runs._records import Row
from pdejax.runs._table import Column, Table
from pdejax.studies.audit._config import AuditConfig
from pdejax.studies.audit._found import DRAWS, ONE, SIGNIFICANT, Among, Found, among, known, numbers, tested
from pdejax.studies.audit._pictures import pictures
from pdejax.studies.audit._sections import jacobians, operators, surgery, tokens, weights
from pdejax.studies.study import Evidence, Judgement, failed

IDENTICAL = {"float32": 1e-4, "float64": 1e-10}
FLOOR = {"float32": 3e-6, "float64": 1e-13}  # relative differences below are rounding
NEAR = 0.05  # a last state that moves by less at half the step is near its continuum
ORDERS = {"native": 1, "euler": 1, "heun": 2, "rk4": 4}
TOLD = 0.5  # a fitted order of a wider half-width decides nothing


def judge(config: AuditConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Say what the depth of the network is."""
    [found] = evidence
    facts, key, out = found["subject"], jax.random.key(config.seed), Found()
    identity(found, config.precision, out)
    sentence = refinement(found, config.precision, key, out)
    windows(found, key, out)
    weights(found, out)
    surgery(found, key, out)
    jacobians(found, out)
    tokens(found, facts, out)
    operators(found, key, out)
    lengths = facts["tokens"]
    note = (
        f"{facts['network']}. {facts['sequences']} sequences of {min(lengths)} to {max(lengths)} tokens of {facts['data']}; "
        f"intervals are over sequences."
    )
    if facts.get("draws", DRAWS) < DRAWS:
        note += f" Untrained networks: {facts['draws']}, not {DRAWS}: more were not asked for, or cost too much at this size."
    return Judgement(
        sentence=f"{facts['name']}: {sentence}",
        verdicts=out.verdicts,
        passed=not failed(out.verdicts),
        rows=out.rows,
        tables=out.tables,
        notes=[note],
        results=facts | out.results,
        dataset=dataset(found),
        pictures=pictures(found),
    )


def identity(found: Evidence, precision: str, out: Found) -> None:
    """The lifted field under its own solver is the network, and so are Euler steps of the layers' field."""
    question, limit = "layers as steps of a solver give the network", IDENTICAL[precision]
    # np.max keeps NaN, which is no evidence that two things are equal.
    seen = {name: float(np.max(values)) for name, values in found["identity"].items() if np.size(values)}
    out.results["identity"] = seen
    if not seen or not known(*seen.values()):
        unknown = [name for name, value in seen.items() if not math.isfinite(value)]
        out.verdicts[question] = f"NOT measured: a difference is not finite ({', '.join(unknown) or 'there is none'})"
        return
    worst = max(seen.values())
    out.verdicts[question] = (
        f"{'yes' if worst <= limit else 'NOT'}: relative difference {worst:.1e} ({', '.join(seen)}), allowed {limit:.0e}"
    )


def depth_verdict(move: Figure, beside: Among | None) -> str:
    """Whether halving the step says that the network is near its continuum: from the move, and from where it lies among those of
    untrained networks. It differs from theirs if their p-value and the ratio's interval both say so."""
    if not known(move) or (beside is not None and not beside.measured):
        return "not measured: a move is 0 or not finite"
    little = float(move.high) < NEAR
    size = "by little" if little else "not near its continuum"
    if beside is None:
        return f"{size}: no null to compare with"
    if not beside.decides:
        few = (
            "which tells nothing of others" if beside.count == 1 else f"too few to find a difference at {SIGNIFICANT:g}"
        )
        return f"{size}: beside it stands {beside.name}, {few}"
    apart = beside.p <= SIGNIFICANT
    less, more = apart and float(beside.ratio.high) < 1, apart and float(beside.ratio.low) > 1
    words = "less than" if less else "more than" if more else "as"
    said = f"{words} {beside.name} do, p = {beside.p:.2g}"
    if little and less:
        return f"near its continuum: it moves by less than {NEAR:g}, {said}"
    return f"{size}: it moves {said}"


def refinement(found: Evidence, precision: str, key: Any, out: Found) -> str:
    """Half the step, a quarter, …, of the network's own scheme, and of others for the field of its layers."""
    ours = found["refinement"]
    nulls = {n: found[f"refinement {n}"] for n in ("layers shuffled", "weights shuffled") if f"refinement {n}" in found}
    table = compare_all(
        {
            "own": (jnp.asarray(ours["native/moves"].T), {}),
            "half": (jnp.asarray(ours["euler/moves"][1]), {}),
            **{n: (jnp.asarray(x["euler/moves"][1]), {}) for n, x in nulls.items()},
            "limit": (jnp.asarray(_limit(ours["euler/moves"])), {}),
            "sizes": (jnp.asarray(ours["sizes"].T), {}),
        },
        key=key,
    )
    half, index = table["half"], None
    if "draws" in found:
        index = among(ours["euler/moves"][1], found["draws"]["half"], key)
        rank = f"{index.smaller} of {index.count} move less, p = {index.p:.2g}" if index.decides else "no test: too few"
        note = f"move at h/2 over that of {index.name}; {rank}; interval over networks and sequences"
        out.row("continuum index, untrained at matched branch size", index.ratio, note=note)
        half = half.beside({index.name: index.null})
    out.row(
        "move of the last state at h/2",
        half,
        None if index is None else index.name,
        note="layers as Euler steps of their field; untrained from the least to the largest",
    )
    orders = {name: _order(ours, name, precision) for name in ORDERS if f"{name}/steps" in ours}
    limit = table["limit"] if first_order(*orders.get("euler", (math.nan, math.nan))) else None
    if limit is not None:
        out.row("the same in the limit of small steps", limit, note="extrapolated at order 1")
    again = found["subject"]["normalization"] == "after the step"
    after = "the norm after the step is applied twice as often: no limit is promised" if again else ""
    out.row("move at h/2, own scheme", table["own"][1], note=after)
    for name in nulls:
        out.row(f"move at h/2, {name}", table[name], note="one draw")
    lines = []
    for name, (order, ci) in orders.items():
        moves = np.mean(ours[f"{name}/moves"], axis=1)
        shown = ", ".join(f"1/{k}: {m:.3g}" for k, m in zip(ours[f"{name}/factors"], moves, strict=True))
        lines.append(("own" if name == "native" else name, shown, ORDERS[name], order, ci))
    columns = (Column("scheme"), Column("moves by step"), Column("order", "d", right=True))
    columns += (Column("fitted", ".2f", right=True), Column("±", ".2f", right=True))
    out.tables.append(Table(columns, lines, "Refinement of all layers"))
    out.results["refinement"] = {
        "moves": np.mean(ours["euler/moves"], axis=1).tolist(),
        "own": np.mean(ours["native/moves"], axis=1).tolist(),
        "limit": None if limit is None else float(limit),
        "half": numbers(half),
        "index": None if index is None else numbers(index.ratio) | {"p": index.p, "draws": index.count},
        "orders": {name: {"value": order, "ci": ci} for name, (order, ci) in orders.items()},
    }
    readings(ours, out)
    out.verdicts["half the step"] = depth_verdict(table["half"], index)
    beside = (
        "" if index is None else f", {index.ratio.summary()} times what an untrained network of its branch sizes moves"
    )
    towards = "no limit told" if limit is None else f"limit {float(limit):.3g}"
    return f"half the step moves the last state by {table['half'].summary()} ({towards}){beside}: {out.verdicts['half the step']}"


def first_order(order: float, ci: float) -> bool:
    """Whether Euler's moves converge at order 1, as the extrapolation to their limit needs: the order is told, and its interval
    holds 1 or it is within a quarter of it."""
    return known(order, ci) and ci < TOLD and abs(order - 1) <= max(ci, 0.25)


def _limit(moves: np.ndarray) -> np.ndarray:
    """Richardson's extrapolation of moves at h/2^{k−1}, h/2^k by an error of order 1."""
    return 2 * moves[-1] - moves[-2]


def _order(ours: Mapping[str, Any], name: str, precision: str) -> tuple[float, float]:
    h = 1.0 / np.asarray(ours[f"{name}/factors"], float)[:-1]
    fit = fit_order(h, np.mean(ours[f"{name}/steps"], axis=1), floor=FLOOR[precision], last=3)
    return fit.order, fit.ci


def readings(ours: Mapping[str, Any], out: Found) -> None:
    """Loss, accuracy and logits at h/2, …, with the paired test of the loss."""
    if "euler/loss" not in ours:
        return
    loss, factors = ours["euler/loss"], ours["euler/factors"]
    lines = []
    for k, factor in enumerate(factors):
        p = tested(loss[k] - loss[0]) if k else math.nan
        accuracy = float(np.mean(ours["euler/accuracy"][k]))
        logits = float(np.mean(ours["euler/logits"][k]))
        lines.append((f"1/{factor}", float(np.mean(loss[k])), float(np.exp(np.mean(loss[k]))), accuracy, logits, p))
    heads = ("step", "loss [nats]", "perplexity", "accuracy", "logits move", "p of the change")
    out.tables.append(
        Table([Column(h, ".4g", right=i > 0) for i, h in enumerate(heads)], lines, "Loss under refinement")
    )
    change = loss[1] - loss[0]
    figure, p, least = over_seeds(change), tested(change), smallest_p(len(change))
    power = f"; of {len(change)} sequences none below {least:.2g} is possible" if least > SIGNIFICANT else ""
    out.row("change of the loss at h/2", figure, unit="nats", note=f"paired permutation test p = {p:.2g}{power}")
    out.results["loss"] = {
        "loss": np.mean(loss, axis=1).tolist(),
        "p": p,
        "accuracy": np.mean(ours["euler/accuracy"], axis=1).tolist(),
    }
    out.verdicts["loss at half the step"] = loss_verdict(change, p)


def loss_verdict(change: np.ndarray, p: float) -> str:
    """Whether the loss changes, by the paired test: not decided by so few sequences that no p can be below 0.05."""
    wrong, least = int(np.sum(~np.isfinite(change))), smallest_p(len(change))
    if wrong:
        return f"not measured: the loss is not finite on {wrong} of {len(change)} sequences"
    by = float(np.mean(change))
    if least > SIGNIFICANT:
        return f"undecidable: {by:+.3g} nats, but of {len(change)} sequences the smallest p there can be is {least:.2g}; take 6"
    if p > SIGNIFICANT:
        return f"no change found: {by:+.3g} nats, p = {p:.2g}"
    return f"{'higher' if by > 0 else 'lower'} by {abs(by):.3g} nats, p = {p:.2g}"


def windows(found: Evidence, key: Any, out: Found) -> None:
    """Half the step in a window of layers."""
    ours, null = found["windows"], found.get("windows untrained")
    both = {} if null is None else {ONE: jnp.asarray(null["moves"].T)}
    figure = compare_all({"": (jnp.asarray(ours["moves"].T), both)}, key=key)[""]
    lines, results = [], []
    for i, (begin, end) in enumerate(ours["spans"].tolist()):
        line: list[Any] = [f"{begin}–{end - 1}", figure[i], figure[i].nulls.get(ONE)]
        p = change = None
        if "loss" in ours:
            change = ours["loss"][i] - ours["own loss"]
            p = tested(change)
            line += [over_seeds(change), float(np.expm1(np.mean(change))), p]
        lines.append(tuple(line))
        results.append(
            {
                "layers": [begin, end],
                "move": numbers(figure[i]),
                "loss": None if change is None else float(np.mean(change)),
                "p": p,
            }
        )
    columns = [Column("layers refined"), Column("move at h/2", right=True), Column(ONE, right=True)]
    if "loss" in ours:
        columns += [
            Column("change of loss", right=True),
            Column("of perplexity", "+.1%", right=True),
            Column("p", ".2g", right=True),
        ]
    out.tables.append(Table(columns, lines, "Windows of layers as Euler steps, at half the step"))
    out.results["windows"] = results
    inner = figure.value[:-3]
    out.rows.append(Row("largest move of a window at h/2", figure[int(np.argmax(np.asarray(inner)))]))
    out.rows.append(Row("smallest move of a window at h/2", figure[int(np.argmin(np.asarray(inner)))]))


def dataset(found: Evidence) -> xr.Dataset:
    """Every array of numbers, by section and name, its axes called by their place."""
    data = {}
    for section, arrays in found.items():
        if section == "subject":
            continue
        for name, value in arrays.items():
            x = np.asarray(value)
            if x.dtype.kind in "fi" and x.size:
                label = f"{section}_{name}".replace(" ", "_").replace("/", "_")
                data[label] = ([f"{label}_{i}" for i in range(x.ndim)], x.astype(float))
    return xr.Dataset(data)
