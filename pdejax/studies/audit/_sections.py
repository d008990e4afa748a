"""What follows from the sections after refinement: weights, surgery, Jacobians, tokens and operators."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdejax._bootstrap import compare_all, interval, over_seeds
from pdejax._figure import Figure
from pdejax.analysis.similarity import spearman
from pdejax.analysis.spectra._depth import EQUAL
from pdejax.runs._table import Column, Table
from pdejax.studies.audit._found import ONE, SIGNIFICANT, Found, geometric, known, numbers, tested
from pdejax.studies.study import Evidence

# A correlation of neighbouring layers that counts: layers with less are called independent, and only by a test that finds it.
POWER = 0.3
AT_REST = 1e-5  # a move by less is rounding
MATERIAL = 0.05  # an R² above its null by less explains nothing worth naming


def weights_verdict(holder: Figure, adjacent: Figure, p: float, detectable: float) -> str:
    """ODE, SDE or neither, from the exponent and the correlation of neighbours, with their intervals, and the test of the order
    of layers, which finds correlations from `detectable` on.

    Independent layers are not only in no order: they have no part in common either, which layers drawn around a common mean
    have. So SDE needs that neighbours are hardly correlated, and that the test would find it."""
    if not known(holder, adjacent, p):
        return "not measured: the exponent, the correlation or its test is not finite, or of one kind of weights"
    ordered = p <= SIGNIFICANT
    if ordered and float(holder.low) > 0.5:
        return "ODE: weights are a smooth function of depth"
    if ordered and float(holder.high) < 0.5:
        return "neither: neighbours are nearer than chance, but weights are rough in depth"
    if ordered:
        return "undecided: the exponent's interval holds ½"
    if float(adjacent.low) >= POWER:
        return "neither: layers share a part, around which they are in no order"
    if not detectable <= POWER:  # NaN too: none was found
        return "undecided: the test of their order has no power"
    if float(adjacent.high) >= POWER:
        return f"undecided: layers are in no order, but neighbours may be correlated by {POWER:g}"
    if float(holder.high) >= 0.5:
        return "undecided: layers are in no order, but the exponent's interval holds ½"
    return "SDE: layers are as independent ones"


def weights(found: Evidence, out: Found) -> None:
    """Weights as a function of depth."""
    ours = found["weights"]
    if "autonomous" in ours:
        out.verdicts["weights in depth"] = "ODE: one field at all depths (autonomous)"
        if "applications" in ours:
            fixed_point(np.asarray(ours["applications"], float), found["subject"]["layers"], out)
        return
    if "holder" not in ours:
        out.verdicts["weights in depth"] = f"not measured: {ours.get('absent', 'there are none')}"
        return
    holder, p = Figure(*ours["holder"]), float(ours["p_value"])
    null = Figure(*ours["adjacent null"])
    adjacent = Figure(*ours["adjacent"], nulls={"layers shuffled": null})
    out.row(
        "correlation of neighbouring layers' weights",
        adjacent,
        "layers shuffled",
        note=f"p = {p:.2g}; interval over kinds",
    )
    out.row(
        "exponent of weights in depth", holder, note="1 smooth, ½ a random walk, 0 independent; interval over kinds"
    )
    power = float(ours["detectable"])
    can = (
        f"a correlation of {power:g} would be found" if math.isfinite(power) else "no correlation tried would be found"
    )
    if float(np.max(ours["distance"])) <= EQUAL:
        out.verdicts["weights in depth"] = "ODE: all layers are equal, steps of one autonomous flow"
    else:
        out.verdicts["weights in depth"] = (
            f"{weights_verdict(holder, adjacent, p, power)} (exponent {holder.summary()}, correlation of neighbours "
            f"{Figure(*ours['adjacent']).summary()}, p = {p:.2g}; {can})"
        )
    count = ours["distance"].shape[-1]
    near = (slice(None), np.arange(count - 1), np.arange(1, count))
    lines = [
        (
            str(name),
            *(float(np.mean(ours[k][near][i])) for k in ("distance", "correlation", "overlap")),
            float(ours["independent"]),
        )
        for i, name in enumerate(ours["names"].tolist())
    ]
    heads = ("weights", "distance of neighbours", "correlation", "overlap", "overlap of independent ones")
    out.tables.append(
        Table([Column(h, ".3f", right=i > 0) for i, h in enumerate(heads)], lines, "Weights of neighbouring layers")
    )
    out.results["weights"] = {"holder": numbers(holder), "adjacent": numbers(adjacent), "p": p, "detectable": power}


def fixed_point(moves: np.ndarray, layers: int, out: Found) -> None:
    """Whether the one layer, applied on and on, comes to a state that it leaves where it is: moves `(applications, b)`."""
    count, last = len(moves), over_seeds(moves[-1])
    by_depth = over_seeds(moves[layers - 1])
    out.row(
        f"move by application {count} of the one layer", last, note=f"by application {layers}: {by_depth.summary()}"
    )
    out.verdicts["fixed point"] = fixed_point_verdict(moves)
    out.results["applications"] = np.mean(moves, axis=1).tolist()


def fixed_point_verdict(moves: np.ndarray) -> str:
    """From the moves of each application by sequence: a fixed point is there if the last moves nothing but rounding. It is
    approached if moves of every sequence halve over the last half of the applications, and in the last quarter fall by no less
    than an even fall would, √½: moves that stay where they are at the end approach nothing."""
    count = len(moves)
    if not np.all(np.isfinite(moves)):
        return "not measured: a move is not finite"
    last = float(np.max(moves[-1]))
    if last <= AT_REST:
        return f"reached: application {count} moves the state by {last:.1g} at most"
    half, late = moves[count // 2], moves[3 * count // 4]
    if np.all(moves[-1] < 0.5 * half) and np.all(moves[-1] < 0.5**0.5 * late):
        return f"approached: the move fell to {float(np.mean(moves[-1])):.3g} in {count} applications, and falls on"
    low = float(np.min(moves[-1]))
    return f"none in {count} applications: the last still moves the state by {low:.3g} to {last:.3g}"


def surgery(found: Evidence, key: Any, out: Found) -> None:
    """Layers left out, exchanged and repeated, and how well it is foreseen."""
    ours = found["surgery"]
    moves, estimates, cosines = ours["moves"], ours["estimates"], ours["cosines"]
    shown = compare_all(
        {
            "moves": (jnp.asarray(np.moveaxis(moves, 2, 0)), {}),
            "skip": (jnp.asarray(np.mean(moves[0], axis=0)), {}),
        },
        key=key,
    )
    lines = []
    for l in range(moves.shape[1]):
        line: list[Any] = [
            l,
            *(shown["moves"][k, l] for k in range(3)),
            float(np.mean(cosines[l])),
            float(np.mean(estimates[0, l])),
        ]
        if "losses" in ours:
            line += [over_seeds(ours["losses"][0, l]), tested(ours["losses"][0, l])]
        lines.append(tuple(line))
    columns = [
        Column("layer", "d"),
        *(Column(head, right=True) for head in ("skipped", "exchanged with the next", "repeated")),
    ]
    columns += [Column("1 − cosine", ".3g", right=True), Column("first-order estimate", ".3g", right=True)]
    if "losses" in ours:
        columns += [Column("loss without", right=True), Column("p", ".2g", right=True)]
    out.tables.append(Table(columns, lines, "Surgery: moves of the last state"))
    out.row("move of the last state without a layer, mean", shown["skip"])
    out.results["surgery"] = {"skip": numbers(shown["skip"])}
    if "autonomous" in found["weights"]:
        return  # without any of them the network is the same: there is nothing to rank
    scores = {
        "1 − cosine": (_foreseen(moves[0], cosines, key), _slope(moves[0], cosines)),
        "first-order estimate": (_foreseen(moves[0], estimates[0], key), _slope(moves[0], estimates[0])),
    }
    for name, (rank, slope) in scores.items():
        out.row(f"rank correlation with {name}", rank, note=f"over layers; the move is {slope:.2g} times the score")
    out.results["surgery"] |= {n: numbers(r) | {"slope": s} for n, (r, s) in scores.items()}
    if "losses" in ours:
        rank = _foreseen(ours["losses"][0], ours["loss_estimates"][0], key)
        out.row("rank correlation of the loss with its first-order estimate", rank, note="over layers")
        out.results["surgery"]["loss estimate"] = numbers(rank)


def _foreseen(value: np.ndarray, score: np.ndarray, key: Any) -> Figure:
    """Spearman's rank correlation over layers of means over sequences, resampled over sequences."""
    if not known(value, score):
        return Figure(np.nan, np.nan, np.nan)
    return _rank_correlation(jnp.asarray(value), jnp.asarray(score), key)


# Compiled once per shape: a loop over a closure would compile anew at every call.
@jax.jit
def _rank_correlation(a: jax.Array, b: jax.Array, key: Any) -> Figure:
    def statistic(w):
        return spearman(a @ w.astype(a.dtype), b @ w.astype(b.dtype)).value

    return interval(statistic, a.shape[1], key=key, dtype=a.dtype, ranks=True)


def _slope(value: np.ndarray, score: np.ndarray) -> float:
    """Least-squares slope through 0 of means over sequences: 1 for a score that is calibrated."""
    x, y = score.mean(axis=1), value.mean(axis=1)
    return float(x @ y / (x @ x))


def jacobians(found: Evidence, out: Found) -> None:
    """Derivatives of layers and of the whole map."""
    ours, null = found["jacobians"], found.get("jacobians untrained")

    def figure(take: Any, mean: Any = over_seeds) -> Figure:
        beside = {} if null is None else {ONE: mean(take(null))}
        own = mean(take(ours))
        return Figure(own.value, own.low, own.high, beside)

    layers = {n: figure(lambda x, n=n: x[n], geometric) for n in ("largest", "smallest", "frobenius")}
    lines = [
        (l, *(layers[n][l] for n in layers), layers["largest"][l].nulls.get(ONE))
        for l in range(ours["largest"].shape[1])
    ]
    heads = ("layer", "largest singular value", "smallest found", "Frobenius norm", f"largest, {ONE}")
    out.tables.append(Table([Column(h, right=i > 0) for i, h in enumerate(heads)], lines, "Jacobians of layers"))
    top = figure(lambda x: x["exponents"][:, 0])
    relative = figure(lambda x: x["exponents"][:, 0] - x["growth"])
    growth = figure(lambda x: x["growth"])
    whole = figure(lambda x: x["whole"][:, 0], geometric)
    token = figure(lambda x: np.nanmean(x["ftle"], axis=1))
    out.row("largest singular value of the whole map", whole, ONE)
    out.row("largest finite-depth Lyapunov exponent", top, ONE, "1/layer")
    out.row(
        "growth of the state",
        growth,
        ONE,
        "1/layer",
        "without parameters: what scale alone takes off relative changes",
    )
    out.row("largest exponent of relative changes", relative, ONE, "1/layer", "exponent minus growth")
    out.row("exponent of a token, mean", token, ONE, "1/layer")
    out.results["jacobians"] = {
        "exponents": np.mean(ours["exponents"], axis=0).tolist(),
        "relative": numbers(relative),
        "growth": numbers(growth),
        "whole": numbers(whole),
    }


def tokens(found: Evidence, facts: Mapping[str, Any], out: Found) -> None:
    """Clusters and rank of tokens, and the law of their collapse."""
    ours, null = found["tokens"], found.get("tokens untrained")
    for name, words in (("cosine", "mean cosine of two tokens"), ("effective_rank", "effective rank of tokens")):
        beside = {} if null is None else {ONE: Figure(*null[name][:, -1])}
        out.row(
            f"{words}, last layer",
            Figure(*ours[name][:, -1], nulls=beside),
            ONE,
            note=f"first {ours[name][0, 0]:.3g}",
        )
    out.results["tokens"] = {
        name: ours[name][0].tolist() for name in ("cosine", "effective_rank", "residual", "clusters")
    }
    if not known(ours["gap"]):
        out.verdicts["collapse of tokens"] = "not measured: the gap of tokens is not finite"
    if "law" not in ours:
        return
    found_law, place = str(ours["law"]), facts["normalization"]
    law, exact = {"after the step": ("exponential", "2 at unit strength"), "inside the branch": ("algebraic", "2")}.get(
        place, (None, "")
    )
    out.verdicts["collapse of tokens"] = found_law
    if law is None:
        return
    rate = Figure(*ours[law])
    told = known(rate) and float(rate.high) - float(rate.low) <= abs(float(rate))
    if told:
        note = f"exact for normalization {place} alone: {exact}; interval of the fit"
        out.row(f"{law} law of the gap, fitted", rate, note=note)
    out.verdicts["collapse of tokens"] += f"; with normalization {place} attention alone gives the {law} law"
    if not told:
        out.verdicts["collapse of tokens"] += (
            ", whose fitted rate is not decided: its interval is wider than it is large"
        )
    out.results["tokens"] |= {"law": found_law, "rate": numbers(rate) if told else None}


def operators(found: Evidence, key: Any, out: Found) -> None:
    """What the operators explain of held-out increments."""
    ours, null = found["operators"], found.get("operators untrained")
    groups = ours["groups"].tolist()
    beside = {"another sequence": jnp.asarray(np.moveaxis(ours["null"], 2, 0))}
    figure = compare_all({"": (jnp.asarray(np.moveaxis(ours["r2"], 2, 0)), beside)}, key=key)[""]
    lines = []
    for i, name in enumerate(groups):
        layers = [float(x) for x in np.asarray(figure.value)[i]]
        other = (
            math.nan
            if null is None or name not in null["groups"].tolist()
            else float(np.mean(null["r2"][null["groups"].tolist().index(name)]))
        )
        whole = over_seeds(np.mean(ours["r2"][i], axis=0))
        lines.append((name, whole, float(np.mean(ours["null"][i])), other, ", ".join(f"{x:.2f}" for x in layers)))
    heads = ("operators", "held-out R²", "another sequence", ONE, "by layer")
    out.tables.append(
        Table(
            [Column(h, ".3f", right=0 < i < 4) for i, h in enumerate(heads)], lines, "Increments explained by operators"
        )
    )
    papers = groups.index("the papers' operators")
    error, still = (over_seeds(ours[name][-1]) for name in ("rollout", "persistence"))
    for name in ("the papers' operators", "own terms", "all"):
        if name in groups:
            i = groups.index(name)
            whole = over_seeds(np.mean(ours["r2"][i], axis=0))
            nulls = {"another sequence": over_seeds(np.mean(ours["null"][i], axis=0))}
            out.row(
                f"held-out R² of {name}",
                Figure(whole.value, whole.low, whole.high, nulls),
                "another sequence",
                note="mean over layers",
            )
    out.row(
        "error of the papers' operators at the last layer",
        Figure(error.value, error.low, error.high, {"the first state": still}),
        "the first state",
    )
    own = float(np.mean(ours["r2"][groups.index("own terms")])) if "own terms" in groups else None
    explained, chance = (np.mean(ours[name][papers], axis=0) for name in ("r2", "null"))
    difference = over_seeds(explained - chance)
    out.verdicts["operators of the papers"] = operator_verdict(
        float(np.mean(explained)), float(np.mean(chance)), difference, own
    )
    # Of the papers' operators: the R² of another sequence's, and how far they are above it.
    out.results["operators"] = {name: float(np.mean(ours["r2"][i])) for i, name in enumerate(groups)} | {
        "null": float(np.mean(chance)),
        "difference": numbers(difference),
        "rollout": float(error),
        "persistence": float(still),
    }


def operator_verdict(papers: float, null: float, difference: Figure, own: float | None) -> str:
    """How much of the increments the papers' parameter-free operators explain: nothing, however large their R², unless it is
    above that of another sequence's operators on the same increments, in pairs."""
    if not known(papers, null, difference) or (own is not None and not known(own)):
        return "not measured: an R² is not finite"
    above = float(difference.low) > 0 and papers > max(null, 0) + MATERIAL
    share = "nothing above their null" if not above else "most" if papers > 0.5 else "part"
    beside = "" if own is None else f"; the network's own terms {own:.2f}"
    return (
        f"they explain {share} of the layers' increments: held-out R² {papers:.2f}, null {null:.2f}, difference "
        f"{difference.summary()}{beside}"
    )
