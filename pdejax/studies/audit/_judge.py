"""What follows from an audit's numbers: intervals over sequences, nulls, verdicts, sentences. A pure function of the numbers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from pdejax._bootstrap import bootstrap, compare_all, over_seeds, permutation_test
from pdejax._figure import Figure
from pdejax.analysis.numerics import fit_order
from pdejax.runs._records import Row
from pdejax.runs._table import Column, Table
from pdejax.studies.audit._config import AuditConfig
from pdejax.studies.audit._pictures import pictures
from pdejax.studies.study import Evidence, Judgement, failed

IDENTICAL = {"float32": 1e-4, "float64": 1e-10}
FLOOR = {"float32": 3e-6, "float64": 1e-13}  # relative differences below are rounding
NEAR = 0.05  # a last state that moves by less at half the step is near its continuum
SIGNIFICANT = 0.05
ORDERS = {"native": 1, "euler": 1, "heun": 2, "rk4": 4}


@dataclasses.dataclass
class Found:
    """What the sections hand over."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    verdicts: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)

    def row(self, quantity: str, ours: Figure, null: str | None = None, unit: str = "", note: str = "") -> None:
        """A line of the table, beside one of the figure's nulls."""
        beside = None if null is None or null not in ours.nulls else ours.nulls[null]
        self.rows.append(
            Row(quantity, ours, unit=unit, null=beside, null_name=None if beside is None else null, note=note)
        )


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
    """The lifted field under its own solver is the network."""
    seen = {name: float(np.max(values)) for name, values in found["identity"].items() if np.size(values)}
    worst = max(seen.values())
    limit = IDENTICAL[precision]
    out.verdicts["layers as steps of a solver give the network"] = (
        f"{'yes' if worst <= limit else 'NOT'}: relative difference {worst:.1e} ({', '.join(seen)}), allowed {limit:.0e}"
    )
    out.results["identity"] = seen


def depth_verdict(move: Figure, index: Figure | None) -> str:
    """Whether halving the step says that the network is near its continuum: from the move and its ratio to the null's."""
    if index is None:
        beside = "no null to compare with"
    elif float(index.high) < 1:
        beside = "less than its null"
    elif float(index.low) > 1:
        beside = "more than its null"
    else:
        beside = "as its null does"
    near = float(move.high if math.isfinite(float(move.high)) else move.value) < NEAR
    if near and index is not None and float(index.high) < 1:
        return f"near its continuum: it moves by less than {NEAR:g}, {beside}"
    return f"{'by little' if near else 'not near its continuum'}: it moves {beside}"


def refinement(found: Evidence, precision: str, key: Any, out: Found) -> str:
    """Half the step, a quarter, …, of the network's own scheme, and of others for the field of its layers."""
    ours = found["refinement"]
    nulls = {
        n: found[f"refinement {n}"]
        for n in ("untrained", "layers shuffled", "weights shuffled")
        if f"refinement {n}" in found
    }
    table = compare_all(
        {
            "own": (jnp.asarray(ours["native/moves"].T), {}),
            "half": (
                jnp.asarray(ours["euler/moves"][1]),
                {n: jnp.asarray(x["euler/moves"][1]) for n, x in nulls.items()},
            ),
            "limit": (jnp.asarray(_limit(ours["native/moves"])), {}),
            "sizes": (jnp.asarray(ours["sizes"].T), {}),
        },
        key=key,
    )
    index = None
    if "untrained" in nulls:
        index = _ratio(ours["euler/moves"][1], nulls["untrained"]["euler/moves"][1], key)
        out.row("continuum index, untrained at matched branch size", index, note="move at h/2 over that of the null")
    out.row("move of the last state at h/2, own scheme", table["own"][1])
    out.row("the same in the limit of small steps", table["limit"], note="extrapolated at order 1")
    out.row("move at h/2, layers as Euler steps", table["half"], "untrained")
    for name in [n for n in nulls if n != "untrained"]:
        out.row(f"move at h/2, {name}", table["half"].nulls[name])
    orders = {name: _order(ours, name, precision) for name in ORDERS if f"{name}/steps" in ours}
    lines = []
    for name, (order, ci) in orders.items():
        moves = np.mean(ours[f"{name}/moves"], axis=1)
        shown = ", ".join(f"1/{k}: {m:.3g}" for k, m in zip(ours[f"{name}/factors"], moves, strict=True))
        lines.append(("own" if name == "native" else name, shown, ORDERS[name], order, ci))
    columns = (Column("scheme"), Column("moves by step"), Column("order", "d", right=True))
    columns += (Column("fitted", ".2f", right=True), Column("±", ".2f", right=True))
    out.tables.append(Table(columns, lines, "Refinement of all layers"))
    out.results["refinement"] = {
        "own": np.mean(ours["native/moves"], axis=1).tolist(),
        "limit": float(table["limit"]),
        "half": _numbers(table["half"]),
        "index": None if index is None else _numbers(index),
        "orders": {name: order for name, (order, _) in orders.items()},
    }
    _readings(ours, out)
    out.verdicts["half the step"] = depth_verdict(table["half"], index)
    shown = (
        "" if index is None else f", {index.summary()} times what an untrained network of the same branch sizes moves"
    )
    return (
        f"half the step moves the last state by {table['own'][1].summary()} (limit {float(table['limit']):.3g}); its layers as "
        f"Euler steps by {float(table['half']):.3g}{shown}: {out.verdicts['half the step']}"
    )


def _limit(moves: np.ndarray) -> np.ndarray:
    """Richardson's extrapolation of moves at h/2^{k−1}, h/2^k by an error of order 1."""
    return 2 * moves[-1] - moves[-2]


def _order(ours: Mapping[str, Any], name: str, precision: str) -> tuple[float, float]:
    h = 1.0 / np.asarray(ours[f"{name}/factors"], float)[:-1]
    fit = fit_order(h, np.mean(ours[f"{name}/steps"], axis=1), floor=FLOOR[precision], last=3)
    return fit.order, fit.ci


def _readings(ours: Mapping[str, Any], out: Found) -> None:
    """Loss, accuracy and logits at h/2, …, with the paired test of the loss."""
    if "native/loss" not in ours:
        return
    loss, factors = ours["native/loss"], ours["native/factors"]
    lines = []
    for k, factor in enumerate(factors):
        change = loss[k] - loss[0]
        p = float(permutation_test(change)) if k else math.nan
        accuracy = float(np.mean(ours["native/accuracy"][k]))
        logits = float(np.mean(ours["native/logits"][k]))
        lines.append((f"1/{factor}", float(np.mean(loss[k])), float(np.exp(np.mean(loss[k]))), accuracy, logits, p))
    heads = ("step", "loss [nats]", "perplexity", "accuracy", "logits move", "p of the change")
    out.tables.append(
        Table([Column(h, ".4g", right=i > 0) for i, h in enumerate(heads)], lines, "Loss under refinement, own scheme")
    )
    change = loss[1] - loss[0]
    figure = over_seeds(change)
    p = float(permutation_test(change))
    out.row("change of the loss at h/2, own scheme", figure, unit="nats", note=f"paired permutation test p = {p:.2g}")
    out.results["loss"] = {
        "own": np.mean(loss, axis=1).tolist(),
        "p": p,
        "accuracy": np.mean(ours["native/accuracy"], axis=1).tolist(),
    }
    worse = float(figure.value) > 0
    out.verdicts["loss at half the step"] = (
        f"{'higher' if worse else 'lower'} by {abs(float(figure.value)):.3g} nats, p = {p:.2g}"
        if p < SIGNIFICANT
        else f"no change found: {float(figure.value):+.3g} nats, p = {p:.2g}"
    )


def windows(found: Evidence, key: Any, out: Found) -> None:
    """Half the step in a window of layers."""
    ours, null = found["windows"], found.get("windows untrained")
    both = {} if null is None else {"untrained": jnp.asarray(null["moves"].T)}
    figure = compare_all({"": (jnp.asarray(ours["moves"].T), both)}, key=key)[""]
    lines, results = [], []
    for i, (begin, end) in enumerate(ours["spans"].tolist()):
        line: list[Any] = [f"{begin}–{end - 1}", figure[i], figure[i].nulls.get("untrained")]
        p = change = None
        if "loss" in ours:
            change = ours["loss"][i] - ours["own loss"]
            p = float(permutation_test(change))
            line += [over_seeds(change), float(np.expm1(np.mean(change))), p]
        lines.append(tuple(line))
        results.append(
            {
                "layers": [begin, end],
                "move": _numbers(figure[i]),
                "loss": None if change is None else float(np.mean(change)),
                "p": p,
            }
        )
    columns = [Column("layers refined"), Column("move at h/2", right=True), Column("untrained", right=True)]
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


def weights_verdict(holder: Figure, p: float) -> str:
    """ODE, SDE or neither, from the exponent's interval and the test of the order of layers."""
    low, high = float(holder.low), float(holder.high)
    if low > 0.5:
        return "ODE: weights are a smooth function of depth"
    if high < 0.5 and p > SIGNIFICANT:
        return "SDE: layers are as independent ones"
    if high < 0.5:
        return "neither: neighbours are nearer than chance, but weights are rough in depth"
    return "undecided: the exponent's interval holds ½"


def weights(found: Evidence, out: Found) -> None:
    """Weights as a function of depth."""
    ours = found["weights"]
    if "holder" not in ours:
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
    out.verdicts["weights in depth"] = f"{weights_verdict(holder, p)} (exponent {holder.summary()}, p = {p:.2g}; {can})"
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
    out.results["weights"] = {"holder": _numbers(holder), "adjacent": _numbers(adjacent), "p": p, "detectable": power}


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
            line += [over_seeds(ours["losses"][0, l]), float(permutation_test(ours["losses"][0, l]))]
        lines.append(tuple(line))
    columns = [
        Column("layer", "d"),
        *(Column(head, right=True) for head in ("skipped", "exchanged with the next", "repeated")),
    ]
    columns += [Column("1 − cosine", ".3g", right=True), Column("first-order estimate", ".3g", right=True)]
    if "losses" in ours:
        columns += [Column("loss without", right=True), Column("p", ".2g", right=True)]
    out.tables.append(Table(columns, lines, "Surgery: moves of the last state"))
    scores = {
        "1 − cosine": (_foreseen(moves[0], cosines, key), _slope(moves[0], cosines)),
        "first-order estimate": (_foreseen(moves[0], estimates[0], key), _slope(moves[0], estimates[0])),
    }
    out.row("move of the last state without a layer, mean", shown["skip"])
    for name, (rank, slope) in scores.items():
        out.row(f"rank correlation with {name}", rank, note=f"over layers; the move is {slope:.2g} times the score")
    out.results["surgery"] = {
        "skip": _numbers(shown["skip"]),
        **{n: _numbers(r) | {"slope": s} for n, (r, s) in scores.items()},
    }
    if "losses" in ours:
        rank = _foreseen(ours["losses"][0], ours["loss_estimates"][0], key)
        out.row("rank correlation of the loss with its first-order estimate", rank, note="over layers")
        out.results["surgery"]["loss estimate"] = _numbers(rank)


def _foreseen(value: np.ndarray, score: np.ndarray, key: Any) -> Figure:
    """Spearman's rank correlation over layers of means over sequences, resampled over sequences."""
    a, b = jnp.asarray(value), jnp.asarray(score)

    def ranks(x):
        return jnp.argsort(jnp.argsort(x)).astype(a.dtype)

    def statistic(w):
        return jnp.corrcoef(ranks(a @ w.astype(a.dtype)), ranks(b @ w.astype(b.dtype)))[0, 1]

    return bootstrap(statistic, a.shape[1], key=key, dtype=a.dtype)


def _slope(value: np.ndarray, score: np.ndarray) -> float:
    """Least-squares slope through 0 of means over sequences: 1 for a score that is calibrated."""
    x, y = score.mean(axis=1), value.mean(axis=1)
    return float(x @ y / (x @ x))


def jacobians(found: Evidence, out: Found) -> None:
    """Derivatives of layers and of the whole map."""
    ours, null = found["jacobians"], found.get("jacobians untrained")

    def figure(take: Any, mean: Any = over_seeds) -> Figure:
        beside = {} if null is None else {"untrained": mean(take(null))}
        own = mean(take(ours))
        return Figure(own.value, own.low, own.high, beside)

    layers = {n: figure(lambda x, n=n: x[n], _geometric) for n in ("largest", "smallest", "frobenius")}
    lines = [
        (l, *(layers[n][l] for n in layers), layers["largest"][l].nulls.get("untrained"))
        for l in range(ours["largest"].shape[1])
    ]
    heads = ("layer", "largest singular value", "smallest found", "Frobenius norm", "largest, untrained")
    out.tables.append(Table([Column(h, right=i > 0) for i, h in enumerate(heads)], lines, "Jacobians of layers"))
    top = figure(lambda x: x["exponents"][:, 0])
    relative = figure(lambda x: x["exponents"][:, 0] - x["growth"])
    growth = figure(lambda x: x["growth"])
    whole = figure(lambda x: x["whole"][:, 0], _geometric)
    token = figure(lambda x: np.nanmean(x["ftle"], axis=1))
    out.row("largest singular value of the whole map", whole, "untrained")
    out.row("largest finite-depth Lyapunov exponent", top, "untrained", "1/layer")
    out.row(
        "growth of the state",
        growth,
        "untrained",
        "1/layer",
        "without parameters: what scale alone takes off relative changes",
    )
    out.row("largest exponent of relative changes", relative, "untrained", "1/layer", "exponent minus growth")
    out.row("exponent of a token, mean", token, "untrained", "1/layer")
    out.results["jacobians"] = {
        "exponents": np.mean(ours["exponents"], axis=0).tolist(),
        "relative": _numbers(relative),
        "growth": _numbers(growth),
        "whole": _numbers(whole),
    }


def _geometric(values: np.ndarray) -> Figure:
    """Geometric mean of sizes over sequences, with the interval of their logarithms."""
    logs = over_seeds(np.log(values))
    return Figure(np.exp(logs.value), np.exp(logs.low), np.exp(logs.high))


def tokens(found: Evidence, facts: Mapping[str, Any], out: Found) -> None:
    """Clusters and rank of tokens, and the law of their collapse."""
    ours, null = found["tokens"], found.get("tokens untrained")
    for name, words in (("cosine", "mean cosine of two tokens"), ("effective_rank", "effective rank of tokens")):
        beside = {} if null is None else {"untrained": Figure(*null[name][:, -1])}
        out.row(
            f"{words}, last layer",
            Figure(*ours[name][:, -1], nulls=beside),
            "untrained",
            note=f"first {ours[name][0, 0]:.3g}",
        )
    out.results["tokens"] = {
        name: ours[name][0].tolist() for name in ("cosine", "effective_rank", "residual", "clusters")
    }
    place = facts["normalization"]
    if "laws" not in ours:
        return
    law, exact = {"after the step": ("exponential", "2 at unit strength"), "inside the branch": ("algebraic", "2")}.get(
        place, (None, "")
    )
    best = ("exponential", "algebraic", "blowup")[int(np.argmin(ours["laws"]))]
    if law is None:
        out.verdicts["collapse of tokens"] = f"{best} is nearest"
        return
    rate = Figure(*ours[law])
    out.row(
        f"{law} law of the gap, fitted",
        rate,
        note=f"exact for normalization {place} alone: {exact}; interval of the fit",
    )
    out.verdicts["collapse of tokens"] = (
        f"{best} is nearest of three laws; with normalization {place} attention alone gives {law}"
    )
    out.results["tokens"] |= {"law": best, "rate": _numbers(rate)}


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
    heads = ("operators", "held-out R²", "another sequence", "untrained", "by layer")
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
    explained = float(np.mean(ours["r2"][papers]))
    own = float(np.mean(ours["r2"][groups.index("own terms")])) if "own terms" in groups else math.nan
    out.verdicts["operators of the papers"] = operator_verdict(explained, float(np.mean(ours["null"][papers])), own)
    out.results["operators"] = {name: float(np.mean(ours["r2"][i])) for i, name in enumerate(groups)} | {
        "rollout": float(error),
        "persistence": float(still),
    }


def operator_verdict(papers: float, null: float, own: float) -> str:
    """How much of the increments the papers' parameter-free operators explain."""
    share = "most" if papers > 0.5 else "part" if papers > max(null, 0) + 0.05 else "nothing above their null"
    beside = "" if math.isnan(own) else f"; the network's own terms {own:.2f}"
    return f"they explain {share} of the layers' increments: held-out R² {papers:.2f}, null {null:.2f}{beside}"


def _ratio(a: np.ndarray, b: np.ndarray, key: Any) -> Figure:
    """Ratio of means over sequences, resampled in pairs."""
    x, y = jnp.asarray(a), jnp.asarray(b)
    return bootstrap(lambda w: (w @ x) / (w @ y), len(a), key=key, dtype=x.dtype)


def _numbers(figure: Figure) -> dict[str, Any]:
    nulls = {name: float(null.value) for name, null in figure.nulls.items()}
    return {"value": float(figure.value), "low": float(figure.low), "high": float(figure.high)} | (
        {"nulls": nulls} if nulls else {}
    )


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
