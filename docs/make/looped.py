"""Looped models over seeds: their table, which intervals part, and what papers say beside it."""

from collections.abc import Iterator
from typing import Any

from make import tables

KINDS = {
    "pre": "pre-LN",
    "post": "post-LN",
    "peri": "norms before and after every sub-layer, in its branch",
    "injected": "pre-LN, the embedding added before every pass",
    "injected-post": "post-LN, the embedding added before every pass",
}
FILE = "loops/seeds.json"
RANGE = "safe range of loops"
COMPARED = ("test accuracy", "spectral radius after the trained passes", "Lyapunov exponent 1", RANGE)


def over_seeds() -> str:
    """Looped models trained from several seeds: their figures, which of two differ, and what became of fixed points."""
    found = tables.read(FILE)
    models, settings = found["models"], found["settings"]
    over = {name: model["over seeds"] for name, model in models.items()}
    rows = [["seeds", *(len(model["seeds"]) for model in models.values())]]
    for quantity, text in _figures(over):
        # Followed to its end, the range is longer than what was seen of it.
        ends = [quantity == RANGE and any(run["followed to its end"] for run in m["seeds"]) for m in models.values()]
        cells = zip((_interval(each.get(quantity)) for each in over.values()), ends, strict=True)
        rows.append([text, *(f"≥ {cell}" if end else cell for cell, end in cells)])
    rows.append(["fixed points; the same one, at most", *(_fixed_points(model["seeds"]) for model in models.values())])
    [base] = {tuple(sorted(run["baselines"].items())) for model in models.values() for run in model["seeds"][:1]}
    least = ", ".join(f"{name} {value:.2f}" for name, value in base)
    about = (
        f"d = {settings['dim']}, {settings['steps']:,} steps of training; {settings['sequences']} inputs of each, followed for "
        f"{settings['loops']} passes. Without a network, seed 0: {least}. A figure that all seeds have alike has no interval."
    )
    kinds = "; ".join(f"`{name}`: {KINDS[name]}" for name in models)
    figures = list(_figures(over))
    kept = [quantity for quantity, _ in figures if quantity.startswith("share of answers kept at ")]
    compared = {*COMPARED, *kept[-1:]}
    lines = [f"- {text}: {_order(over, quantity)}." for quantity, text in figures if quantity in compared]
    said = "Which intervals part, from the numbers; where two overlap nothing is decided between them:"
    return "\n\n".join(
        [
            tables.table(["mean over seeds [95 %]", *(f"`{name}`" for name in models)], rows),
            f"{kinds}. {about}",
            said,
            "\n".join(lines),
        ]
    )


def literature() -> str:
    """What papers say of such loops, beside what the kept seeds say."""
    models = tables.read(FILE)["models"]
    over = {name: model["over seeds"] for name, model in models.items()}
    settled = {name: sum(run["kinds"]["fixed point"] for run in model["seeds"]) for name, model in models.items()}
    same = {name: sum(run["same point"] for run in model["seeds"]) for name, model in models.items()}
    inputs = {name: sum(sum(run["kinds"].values()) for run in model["seeds"]) for name, model in models.items()}
    plain = ("pre", "post", "peri")
    ends, ones = sum(settled[name] for name in plain), sum(same[name] for name in plain)
    if not ends:
        forgotten = "not decided: none of their inputs settles"
    elif ones == ends:
        forgotten = f"so it is: all {ends} inputs that settle do so at the one point of their network"
    else:
        forgotten = f"of {ends} inputs that settle {ones} share a point of their network; the others have further ones"
    alike = {name: over[name] for name in plain}
    two = {name: over[name] for name in ("pre", "injected")}
    rows = [
        [
            "[2604.15259](https://arxiv.org/abs/2604.15259)",
            "without recall fixed points are countable and cannot depend strongly on the input",
            f"`pre`, `post`, `peri`: {forgotten}",
        ],
        *(
            [
                "the same",
                "recall with outer normalization gives fixed points that are reached and depend on the input",
                f"`{name}`: {settled[name]} of {inputs[name]} inputs settle; of one network at most "
                f"{max(run['same point'] for run in models[name]['seeds'])} at one point",
            ]
            for name in models
            if name == "injected-post"
        ),
        [
            "[2502.05171](https://arxiv.org/abs/2502.05171), 3.2",
            "at small scales pre-norm, post-norm and others work almost equally well",
            f"test accuracy of `pre`, `post`, `peri`: {_order(alike, 'test accuracy')}",
        ],
        [
            "[2604.12946](https://arxiv.org/abs/2604.12946)",
            "loops are unstable where the injection's parameters have large spectral norms",
            "with 1 for the state and 1 for the embedding, beside `pre`: largest exponent "
            + _order(two, "Lyapunov exponent 1"),
        ],
        ["the same", "the same", f"{RANGE}: {_order(two, RANGE)}"],
    ]
    return tables.table(["source", "says", "here"], rows)


def _figures(over: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures of the table: their names, and how they are called there."""
    names = list(dict.fromkeys(name for each in over.values() for name in each))
    yield "test accuracy", "test accuracy"
    for name in names:
        if name.startswith("share of inputs: ") and any(each.get(name, {}).get("value") for each in over.values()):
            yield name, name
    yield "spectral radius after the trained passes", "spectral radius after the trained passes, per pass"
    yield "Lyapunov exponent 1", "largest Lyapunov exponent, per pass"
    yield RANGE, f"{RANGE}, passes"
    yield from ((name, name) for name in names if name.startswith(("share of answers kept at ", "accuracy at ")))


def _interval(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "–"
    value, low, high = figure["value"], figure["low"], figure["high"]
    return f"{value:.3g}" if low is None or low == high else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _fixed_points(runs: list[dict[str, Any]]) -> str:
    """Of all inputs that settle, how many share one point with most of their seed."""
    settled = sum(run["kinds"]["fixed point"] for run in runs)
    return f"{settled}; {sum(run['same point'] for run in runs)}" if settled else "0"


def _order(over: dict[str, Any], quantity: str) -> str:
    """Pairs of models whose intervals part."""
    parts = []
    for first, a in over.items():
        below = [f"`{name}`" for name, b in over.items() if _below(b.get(quantity), a.get(quantity))]
        if below:
            parts.append(f"`{first}` above {', '.join(below)}")
    return "; ".join(parts) or "not decided between any two"


def _below(a: dict[str, Any] | None, b: dict[str, Any] | None) -> bool:
    if a is None or b is None or None in (a["high"], b["low"]):
        return False
    return a["high"] < b["low"]
