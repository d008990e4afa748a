"""Tables of solvers, measurements and calibration as Markdown, from the library and from `benchmarks/results`."""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def solvers() -> str:
    """Every solver with order, stability limit and cost, from the library's own table."""
    from pdejax.solvers import SOLVERS

    rows = []
    for name, info in SOLVERS.items():
        limit = "" if info.real_limit is None else "∞" if math.isinf(info.real_limit) else f"{info.real_limit:.3f}"
        # A splitting counts single terms, two here; the table counts whole fields.
        cost = "–" if info.evaluations is None else f"{info.evaluations / (2 if info.splitting else 1):g}"
        rows.append([f"`{name}`", info.order, "yes" if info.adaptive else "", limit, cost, NOTES[name]])
    return table(["name", "order", "adaptive", "stability limit", "evaluations per step", ""], rows)


NOTES = {
    "euler": "a parallel residual block",
    "heun": "",
    "midpoint": "",
    "bosh3": "",
    "rk4": "no error estimate: fixed steps only",
    "tsit5": "the default",
    "dopri5": "",
    "dopri8": "for references",
    "kvaerno5": "implicit; factors a dense (n·d)² Jacobian: small fields only",
    "lietrotter": "a sequential residual block",
    "strang": "midpoint substeps; two terms",
    "macaron": "Euler substeps; two terms",
    "strangflow": "Strang: midpoint for the rest, the linear part exact",
    "etdrk1": "exponential: the linear part exact",
    "etdrk2": "exponential; keeps order 2 at Dirichlet walls",
    "etdrk4": "exponential (Krogstad); first choice for stiff fields",
    "etdrk4ho": "exponential (Hochbruck–Ostermann); keeps its order at Dirichlet walls",
    "ars222": "implicit-explicit; the linear part implicit, L-stable",
    "ark3": "implicit-explicit (Kennedy–Carpenter)",
    "ark4": "implicit-explicit (Kennedy–Carpenter); also with padding masks",
    "rkc2": "stabilized explicit; chooses its stages in every step",
    "rock2": "stabilized explicit, with a longer interval",
}


def training() -> str:
    """Test accuracy of the kept training runs beside their baselines."""
    rows = []
    for name in ("listops", "digits", "mnist", "newsgroups"):
        found = _read(f"training/{name}/result.json")
        config = found["config"]
        beside = ", ".join(f"{what} {100 * value:.1f} %" for what, value in found["baselines"].items())
        rows.append(
            [
                f"`pdejax train {name}`",
                f"{config['layers']} layers, d = {config['dim']}",
                f"{found['parameters']:,}",
                f"**{100 * found['test']['accuracy']:.1f} %**",
                beside,
                f"{found['seconds'] / 60:.1f} min",
            ]
        )
    return table(["command", "model", "parameters", "test accuracy", "beside", "time"], rows)


def convergence() -> str:
    """Fitted orders and bounds of the kept convergence study, its spatial order and its regimes."""
    found = _read("convergence.json")
    rows = []
    for scheme in found["results"]["orders"]:
        error, bound = scheme["errors"][-1], scheme["one_sided_bounds"][-1]
        rows.append(
            [
                f"`{scheme['solver']}`",
                f"{scheme['expected']:g}",
                f"{scheme['order']:.3f} ± {scheme['ci']:.3f}",
                f"{error:.1e}",
                f"{bound / error:.0f}",
            ]
        )
    steps = found["results"]["orders"][0]["steps"][-1]
    head = ["scheme", "expected order", "extrapolated order", f"error at {steps} steps", "one-sided bound / error"]
    return table(head, rows) + "\n\n" + _verdicts(found)


def stability() -> str:
    """The maps of the kept stability study: what v1 (21) and the corrected bound call safe."""
    found = _read("stability.json")
    rows = [
        [
            family["family"],
            f"{family['runs']:,}",
            *(f"{family['v1'][key]:,}" for key in ("false_safe", "false_alarm")),
            *(f"{family['corrected'][key]:,}" for key in ("inside", "false_safe", "false_alarm")),
        ]
        for family in found["results"]["maps"]
    ]
    head = ["family", "runs", "v1 (21): unstable called safe", "stable called unsafe"]
    return (
        table([*head, "runs with G ≤ c", "corrected: unstable called safe", "stable called unsafe"], rows)
        + "\n\n"
        + _verdicts(found)
    )


def phases() -> str:
    """The kept phase diagram: from which depth tokens align, its picture, and how many runs there were."""
    found = _read("sweep/phases.json")
    [shown] = found["tables"]
    head = [column["head"] for column in shown["columns"]]
    rows = [[_cell(cell) for cell in row] for row in shown["rows"]]
    runs = f"{found['results']['runs']:,} runs, all of one sweep."
    picture = "![Phase diagram](files/benchmarks/results/sweep/phases_cosine.png)"
    return "\n\n".join([table(head, rows), _verdicts(found), runs, picture])


def resumed() -> str:
    """The kept sweep that was killed on the way, beside the same left alone."""
    found = _read("sweep/resume.json")
    killed = found["sweeps"]["killed"]
    starts = [
        [i + 1, f"{kill['after_seconds']:.0f} s", f"{kill['chunks']} of {found['chunks']}"]
        for i, kill in enumerate(killed["kills"])
    ]
    done = f"{found['bytes'] / 1e6:.1f} MB. Chunks lost: {killed['lost']}; kept twice: {killed['rewritten']}."
    return "\n\n".join([_sweeps(found), table(["kill", "after the start", "chunks whole by then"], starts), done])


def on_devices() -> str:
    """A smaller sweep on virtual devices and in two processes, beside the same in one on one."""
    found = _read("sweep/devices.json")
    one, many = (found["sweeps"][name] for name in ("undisturbed", "devices"))
    clock, cores = one["seconds"] / many["seconds"], found["environment"]["cores"]
    return f"{_sweeps(found)}\n\n" + (
        f"{found['devices']} virtual devices share the machine's {cores} cores: per second of the processor they do "
        f"{found['rate_of_devices_to_one']:.2f} times the runs of one; by the clock {clock:.2f} times, which is "
        f"{clock / found['devices']:.2f} of {found['devices']} times its rate, where {cores} cores of which one device keeps "
        f"one busy can give {cores / found['devices']:.2f} at most."
    )


def _sweeps(found: dict[str, Any]) -> str:
    words = {
        "undisturbed": "left alone",
        "killed": "killed, then started again",
        "devices": f"{found.get('devices')} virtual devices",
        "processes": "two processes, one folder",
    }
    rows = []
    for name, sweep in found["sweeps"].items():
        log = sweep.get("kills", [])
        seconds = sweep["seconds"] + sum(kill["after_seconds"] for kill in log)
        # Of what was killed the processor's time is not known.
        used = "–" if log else f"{sweep['processor_seconds']:.0f} s"
        rate = "–" if log else f"{sweep['runs'] / sweep['processor_seconds']:,.0f}"
        what = f"{words[name]}, {len(log)} times" if log else words[name]
        rows.append(
            [what, f"{sweep['runs']:,}", f"{seconds:.0f} s", used, rate, sweep["differing_files"] + sweep["more_files"]]
        )
    head = ["sweep", "runs", "time", "of the processor", "runs per second of it", f"of {found['files']} files differ"]
    return table(head, rows)


def loop_seeds() -> str:
    """Looped models trained from several seeds: their figures, which of two differ, and what became of fixed points."""
    found = _read("loops/seeds.json")
    models, settings = found["models"], found["settings"]
    over = {name: model["over seeds"] for name, model in models.items()}
    rows = [["seeds", *(len(model["seeds"]) for model in models.values())]]
    for quantity, text in _loop_figures(over):
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
    lines = [f"- {text}: {_order(over, quantity)}." for quantity, text in _loop_figures(over) if quantity in COMPARED]
    said = "Which intervals part, from the numbers; where two overlap nothing is decided between them:"
    return "\n\n".join(
        [table(["mean over seeds [95 %]", *(f"`{name}`" for name in models)], rows), about, said, "\n".join(lines)]
    )


def loop_literature() -> str:
    """What papers say of such loops, beside what the kept seeds say."""
    models = _read("loops/seeds.json")["models"]
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
    name = "injected-post"
    # Of each network one input at least is at the point that most are at.
    apart = settled[name] - same[name] + sum(run["same point"] > 0 for run in models[name]["seeds"])
    known = f"{settled[name]} of {inputs[name]} inputs settle, at {apart} points or more"
    alike = {name: over[name] for name in plain}
    rows = [
        [
            "[2604.15259](https://arxiv.org/abs/2604.15259)",
            "without recall fixed points are countable and cannot depend strongly on the input",
            f"`pre`, `post`, `peri`: {forgotten}",
        ],
        [
            "the same",
            "recall with outer normalization gives fixed points that are reached and depend on the input",
            f"`{name}`: {known}",
        ],
        [
            "[2502.05171](https://arxiv.org/abs/2502.05171), 3.2",
            "at small scales pre-norm, post-norm and others work almost equally well",
            f"test accuracy of `pre`, `post`, `peri`: {_order(alike, 'test accuracy')}",
        ],
        [
            "[2604.12946](https://arxiv.org/abs/2604.12946)",
            "loops are unstable where the injection's parameters have large spectral norms",
            "with 1 for the state and 1 for the embedding, beside `pre`: "
            f"largest exponent {_order(_two(over), 'Lyapunov exponent 1')}; {RANGE} {_order(_two(over), RANGE)}",
        ],
    ]
    return table(["source", "says", "here"], rows)


def _two(over: dict[str, Any]) -> dict[str, Any]:
    return {name: over[name] for name in ("pre", "injected")}


RANGE = "safe range of loops"
COMPARED = ("test accuracy", "spectral radius after the trained passes", "Lyapunov exponent 1", RANGE)


def _loop_figures(over: dict[str, Any]) -> Iterator[tuple[str, str]]:
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


def _cell(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def long_sequences() -> str:
    """Memory per device of the kept benchmark, what a million tokens need by its fit, and how near one device's numbers are."""
    found = _read("long_sequences.json")
    counts = sorted({row["devices"] for row in found["memory"]["field"]})
    rows = []
    for kind, measured in found["memory"].items():
        for length in sorted({row["tokens"] for row in measured}):
            size = {row["devices"]: row["bytes"] for row in measured if row["tokens"] == length}
            rows.append([f"{kind}, N = {length:,}", *(f"{size[count] / 1e6:.0f} MB" for count in counts)])
    lines = [table(["", *(f"{count} device{'s' * (count > 1)}" for count in counts)], rows)]
    for kind, fit in found["million"].items():
        lines.append(
            f"On two devices or more the {kind}'s memory is {fit['fixed_bytes'] / 1e6:.1f} MB + "
            f"{fit['bytes_per_token'] / 1e3:.2f} kB · N/devices, within {100 * fit['largest_relative_error']:.0f} %. "
            f"A million tokens would take {fit['gigabytes_per_device_on_8']:.2f} GB on each of 8 devices, "
            f"{fit['gigabytes_per_device_on_64']:.2f} GB on "
            f"each of 64; one attention map alone has {fit['gigabytes_of_one_map']:,.0f} GB."
        )
    for kind, beside in found["compared"].items():
        lines.append(
            f"Beside one device: the {kind} of {beside['tokens']:,} tokens (d = {beside['dim']}, "
            f"{beside['heads']} head{'s' * (beside['heads'] > 1)}) on {beside['devices']} devices is that of one within "
            f"{beside['relative_difference']:.1e} of its norm."
        )
    return "\n\n".join(lines)


def stiff() -> str:
    """Field evaluations and seconds to the target error, by solver and diffusivity."""
    found = _read("stiff.json")
    results = found["results"]
    values = sorted({row["D"] for row in results["cost"]})
    best: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["solver"] for row in results["cost"]):
        cells = []
        for value in values:
            tried = [row for row in results["cost"] if (row["solver"], row["D"]) == (name, value) and row["reached"]]
            least = min(tried, key=lambda row: row["evaluations"], default=None)
            far = " (extrapolated)" if least and least["extrapolated"] else ""
            cells.append(f"{least['evaluations']:,}, {least['seconds']:.2g} s{far}" if least else "not reached")
        best[name] = cells
    rows = [[f"`{name}`", *cells] for name, cells in best.items()]
    return table(["solver", *(f"D = {value:g}" for value in values)], rows) + "\n\n" + _verdicts(found)


def parallel() -> str:
    """Iterations needed and predicted, by field, method and tolerance; steps in a row against those of stepping."""
    results = _read("parallel.json")["results"]
    groups: dict[tuple[str, str], dict[float, list[dict[str, Any]]]] = {}
    for row in results["rows"]:
        groups.setdefault((row["field"], row["method"]), {}).setdefault(row["tolerance"], []).append(row)
    exponents: dict[str, list[float]] = {}
    for row in results["rows"]:
        exponents.setdefault(row["field"], []).append(row["exponent"])
    rows = []
    for (field, method), found in groups.items():
        low, high = min(exponents[field]), max(exponents[field])
        cells = [f"{field} ({low:.2f} to {high:.2f})", method]
        for tolerance in (1e-3, 1e-8):
            some = found[tolerance]
            needed = ", ".join(str(row["iterations"]) for row in some)
            predicted = ", ".join(str(row["predicted"]) for row in some) if "predicted" in some[0] else "–"
            path = ", ".join(f"{results['steps'] / row['path']:.2g}" for row in some) if "path" in some[0] else "–"
            cells += [needed, predicted, path]
        rows.append(cells)
    head = ["field (exponent)", "method"]
    for tolerance in ("1e-3", "1e-8"):
        head += [f"iterations to {tolerance}", "predicted", "faster"]
    gradient = results["gradient"]
    shown = "; ".join(
        f"{k} cycles {b:.1e} (estimated {e:.1e})"
        for k, b, e in zip(gradient["iterations"], gradient["bias"], gradient["estimate"], strict=True)
    )
    return f"{table(head, rows)}\n\nRelative bias of gradients stopped after k cycles, forwards and backwards: {shown}."


def limits() -> str:
    """How often verdicts on limits were right, and the answers."""
    found = _read("limits/limits.json")
    [checks, *others] = found["tables"]
    heads = [column["head"] for column in checks["columns"]]
    rows = [[_plain(cell) for cell in row] for row in checks["rows"]]
    parts = [table(heads, rows)]
    for each in others:
        heads = [column["head"] for column in each["columns"]]
        parts += [f"{each['caption']}:", table(heads, [[_plain(cell) for cell in row] for row in each["rows"]])]
    return "\n\n".join([*parts, _verdicts(found)])


def _plain(value) -> str:
    """An entry of a kept table: numbers with three digits after the point."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return "–" if value is None else str(value)


def calibration() -> str:
    """Median error ± spread of every estimator of mutual information, in nats, on channels of known information."""
    found = _read("calibration.json")
    names = list(found["errors"])
    rows = []
    for channel, exact in found["exact"].items():
        cells = []
        for name in names:
            item = found["errors"][name].get(channel)
            if item is None:
                cells.append("–")
                continue
            digits = 3 if abs(item["median_error"]) < 10 else 0
            shown = f"{item['median_error']:+.{digits}f} ± {item['spread']:.{digits}f}"
            cells.append((shown + ("*" if item["saturated"] else "")).replace("-", "−"))
        rows.append([channel, f"{exact:.3f}", *cells])
    return table(["channel", "exact", *(f"`{name}`" for name in names)], rows)


def analysis_speed() -> str:
    """What analyses cost beside another library's."""
    found = _read("analysis.json")
    rows = [
        [
            name,
            f"{1e3 * item['ours_median']:.1f} ms",
            f"{1e3 * item['reference_median']:.1f} ms",
            f"{item['ratio_median']:.2f}",
        ]
        for name, item in found["speed"].items()
    ]
    return table(["analysis", "pdejax", "reference", "reference / pdejax"], rows)


def speed() -> str:
    """Every ratio of the kept speed benchmarks, by group: of the fastest rounds, and of the medians."""
    rows = []
    for file in ("speed.json", "speed_training.json"):
        for path, ratio in _ratios(_read(file)["results"]):
            rows.append([": ".join(path[:-1]), path[-1], f"{ratio['min']:.2f}", f"{ratio['median']:.2f}"])
    return table(["what", "ratio of times", "fastest rounds", "medians"], rows)


def starts() -> str:
    """Seconds of a command, and of the same command again, its programs kept."""
    found = _read("speed.json")["results"]["starts"]
    rows = [
        [
            f"`pdejax {x['command']}`",
            *(f"{x[which]['wall']:.1f}" for which in ("first", "second")),
            f"{x['second / first']['wall']:.2f}",
        ]
        for x in found.values()
    ]
    return table(["command", "first, seconds", "second", "second / first"], rows)


def memory() -> str:
    """Temporaries of attention, dense and blocked, and of gradients through RK4 by adjoint, in MiB."""
    attention = _read("speed.json")["results"]["memory"]
    adjoints = _read("speed_training.json")["results"]["adjoints"]
    first = table(
        ["attention", "forward, MiB", "gradient, MiB"],
        [[name, f"{item['forward']:.1f}", f"{item['gradient']:.1f}"] for name, item in attention.items()],
    )
    steps = list(next(iter(adjoints.values())))
    second = table(
        ["adjoint of RK4", *(f"{count} steps, MiB" for count in steps)],
        [[name, *(f"{item[count]:,.0f}" for count in steps)] for name, item in adjoints.items()],
    )
    return f"{first}\n\n{second}"


def _ratios(found: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    """All ratios by their place: times have a spread, ratios have none."""
    for name, item in found.items():
        if isinstance(item, dict) and "min" in item:
            if "iqr" not in item:
                yield (*path, name if path[0] != "torch" else f"torchdiffeq / pdejax, {name}"), item
        elif isinstance(item, dict):
            yield from _ratios(item, (*path, name))


def environment(name: str) -> str:
    """The machine and versions a result was measured with."""
    found = _read(name)["environment"]
    versions = found["versions"]
    shown = ", ".join(f"{package} {versions[package]}" for package in ("jax", "diffrax", "flax") if package in versions)
    return f"{found['device']}, {found['cores']} cores, Python {found['python']}, {shown}"


def _verdicts(found: dict[str, Any]) -> str:
    seconds = found["results"].get("seconds")
    took = f" ({seconds:.0f} s on two CPU cores)" if seconds else ""
    return f"Verdicts, computed from the numbers{took}:\n\n" + "\n".join(
        f"- {question}: {answer}" for question, answer in found["verdicts"].items()
    )


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())
