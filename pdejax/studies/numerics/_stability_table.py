"""The stability study on a terminal."""

from typing import Any

HEADER = f"{'solver':<10}{'equation':<34}{'predicted':>12}{'measured':>12}{'difference':>12}"


def limit_row(record: dict[str, Any]) -> str:
    """A solver's largest step on an equation, predicted and measured."""
    cells = [_cell(record[key], 12, ".5g") for key in ("predicted", "measured")]
    return f"{record['solver']:<10}{record['equation']:<34}{''.join(cells)}{_cell(record['difference'], 12, '+.2%')}"


def summary(content: dict[str, Any]) -> str:
    """The maps' counts, the verdicts, and where it was measured."""
    results, where = content["results"], content["environment"]
    lines = []
    if results["maps"]:
        lines += [
            "",
            f"{'':<20}{'':>6}{'measured':>24}{'v1 (21) wrongly':>20}{'corrected wrongly':>20}",
            f"{'family':<20}{'runs':>6}{'stable':>8}{'unst.':>8}{'overfl.':>8}{'safe':>10}{'alarm':>10}{'safe':>10}{'alarm':>10}",
        ]
    for m in results["maps"]:
        counts = "".join(f"{m[key]:>8d}" for key in ("stable", "unstable", "overflow"))
        wrong = "".join(f"{m[b][key]:>10d}" for b in ("v1", "corrected") for key in ("false_safe", "false_alarm"))
        lines.append(f"{m['family']:<20}{m['runs']:>6d}{counts}{wrong}")
    lines += ["", "verdicts"]
    lines += [f"  {question:<26} {answer}" for question, answer in content["verdicts"].items()]
    device = f"{where['backend']} ({where['device']}, {where['cores']} cores)"
    lines.append(
        f"measured in {results['seconds']:.1f} s on {device}, jax {where['versions']['jax']}, seed {content['config']['seed']}"
    )
    return "\n".join(lines)


def _cell(value: float | None, width: int, spec: str) -> str:
    return f"{'-':>{width}}" if value is None else f"{format(value, spec):>{width}}"
