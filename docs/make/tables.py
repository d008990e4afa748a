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
        found = read(f"training/{name}/result.json")
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
    found = read("convergence.json")
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
    found = read("stability.json")
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
    found = read("sweep/phases.json")
    [shown] = found["tables"]
    head = [column["head"] for column in shown["columns"]]
    rows = [[_cell(cell) for cell in row] for row in shown["rows"]]
    runs = f"{found['results']['runs']:,} runs, all of one sweep."
    picture = "![Phase diagram](files/benchmarks/results/sweep/phases_cosine.png)"
    return "\n\n".join([table(head, rows), _verdicts(found), runs, picture])


def resumed() -> str:
    """The kept sweep that was killed on the way, beside the same left alone."""
    found = read("sweep/resume.json")
    killed = found["sweeps"]["killed"]
    starts = [
        [i + 1, f"{kill['after_seconds']:.0f} s", f"{kill['chunks']} of {found['chunks']}"]
        for i, kill in enumerate(killed["kills"])
    ]
    done = f"{found['bytes'] / 1e6:.1f} MB. Chunks lost: {killed['lost']}; kept twice: {killed['rewritten']}."
    return "\n\n".join([_sweeps(found), table(["kill", "after the start", "chunks whole by then"], starts), done])


def on_devices() -> str:
    """The sweep on virtual devices and in two processes, beside the same in one on one."""
    found = read("sweep/devices.json")
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


def _cell(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def long_sequences() -> str:
    """Memory per device of the kept benchmark, what a million tokens need by its fit, and how near one device's numbers are."""
    found = read("long_sequences.json")
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
    found = read("stiff.json")
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
    results = read("parallel.json")["results"]
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
    found = read("limits/limits.json")
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
    found = read("calibration.json")
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
    found = read("analysis.json")
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
        for path, ratio in _ratios(read(file)["results"]):
            rows.append([": ".join(path[:-1]), path[-1], f"{ratio['min']:.2f}", f"{ratio['median']:.2f}"])
    return table(["what", "ratio of times", "fastest rounds", "medians"], rows)


def starts() -> str:
    """Seconds of a command, and of the same command again, its programs kept."""
    found = read("speed_starts.json")["results"]["starts"]
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
    attention = read("speed.json")["results"]["memory"]
    adjoints = read("speed_training.json")["results"]["adjoints"]
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
    found = read(name)["environment"]
    versions = found["versions"]
    shown = ", ".join(f"{package} {versions[package]}" for package in ("jax", "diffrax", "flax") if package in versions)
    return f"{found['device']}, {found['cores']} cores, Python {found['python']}, {shown}"


def _verdicts(found: dict[str, Any]) -> str:
    seconds = found["results"].get("seconds")
    took = f" ({seconds:.0f} s on two CPU cores)" if seconds else ""
    return f"Verdicts, computed from the numbers{took}:\n\n" + "\n".join(
        f"- {question}: {answer}" for question, answer in found["verdicts"].items()
    )


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())
