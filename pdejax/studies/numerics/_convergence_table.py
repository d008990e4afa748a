"""The convergence study on a terminal."""

from typing import Any

COLUMNS = (
    ("± 95%", 8),
    ("expect", 8),
    ("steps", 7),
    ("error", 10),
    ("max-norm", 10),
    ("uniform", 10),
    ("bound/err", 11),
    ("evals", 7),
    ("ms", 9),
)
HEADER = f"{'solver':<11}{'order':>8}" + "".join(f"{name:>{width}}" for name, width in COLUMNS)


def scheme_row(record: dict[str, Any]) -> str:
    """One scheme at its finest step whose error was used in the fit."""
    used = record["used"] or record["steps"][-1:]
    i = record["steps"].index(used[-1])
    error, bound = record["errors"][i], record["bounds"][i]
    ratio = None if not error or bound is None else bound / error
    cells = [
        f"{record['solver']:<11}",
        _cell(record["order"], "8.3f"),
        _cell(record["ci"], "8.3f"),
        _cell(record["expected"], "8g"),
        f"{record['steps'][i]:>7d}",
        _cell(error, "10.2e"),
        _cell(record["max_errors"][i], "10.2e"),
        _cell(record["uniform_errors"][i], "10.2e"),
        _cell(ratio, "11.1f"),
        f"{record['evaluations'][i]:>7d}" if record["evaluations"][i] >= 0 else f"{'-':>7}",
        _cell(1e3 * record["seconds"][i], "9.2f"),
    ]
    return "".join(cells)


def summary(content: dict[str, Any]) -> str:
    """Everything but the schemes' rows: input, reference, constants, spatial order, regimes, verdicts."""
    results, where = content["results"], content["environment"]
    constants, reference = results["constants"], results["reference"]
    lines = [
        "",
        f"reference   Dopri8 at {reference['tolerance']:.0e}, own error {reference['error']:.1e} at T "
        f"({reference['uniform_error']:.1e} over depth), {reference['evaluations']} evaluations",
        f"constants   log-norm {constants['log_norm']:.3f}, Lipschitz {constants['lipschitz']:.3f}, "
        f"sup|u''| {constants['curvature']:.3f}",
    ]
    if results["network"]:
        network = results["network"]
        lines.append(
            f"network     {network['layers']} layers stand {network['distance']:.1%} away from their continuum limit"
        )
    spatial = results["spatial"]
    if spatial:
        lines.append(
            f"space       q = {_cell(spatial['order'], '.3f').strip()} from N = {spatial['tokens']}, "
            f"D = {spatial['diffusivity']:g} ({spatial['boundary']})"
        )
    lines.append("verdicts")
    lines += [f"  {question:<26} {answer}" for question, answer in content["verdicts"].items()]
    device = f"{where['backend']} ({where['device']}, {where['cores']} cores)"
    lines.append(
        f"measured in {results['seconds']:.1f} s on {device}, jax {where['versions']['jax']}, seed {content['config']['seed']}"
    )
    return "\n".join(lines)


def _cell(value: float | None, spec: str) -> str:
    width = int("".join(c for c in spec.split(".")[0] if c.isdigit()) or 0)
    return f"{'-':>{width}}" if value is None else f"{value:{spec}}"
