"""The ledger as text and as Markdown."""

import textwrap
from collections.abc import Sequence
from typing import Any

from pdejax._figure import Figure, number
from pdejax.runs._findings import VERDICTS, Finding, counterexample_file

WIDTH = 110
BRACKETS = (
    "Brackets: the 95 % interval of a mean over seeds (of a ratio: of its geometric mean), or the range over seeds of what is "
    "claimed of every case."
)


def line(finding: Finding) -> str:
    """One line: the claim, its verdict, its headline figures, and the seconds it took."""
    return f"{finding.claim:<8}{finding.verdict:<32}{finding.seconds:>6.1f} s  {headline(finding)}"


def headline(finding: Finding) -> str:
    """The figures that settle it, with their intervals."""
    evidence = finding.evidence
    return ", ".join(f"{name.replace('_', ' ')} {shown(evidence[name])}" for name in finding.headline)


def table(claims: Sequence[Finding], equations: Sequence[Finding]) -> str:
    """A paragraph for each claim, a line for each equation, and the counts of verdicts."""
    parts = []
    for finding in claims:
        parts.append(line(finding))
        parts.append(_wrapped("claimed", f"{finding.statement} ({finding.source})"))
        if finding.verdict != "holds":
            parts.append(_wrapped("instead", finding.condition))
        if finding.counterexample is not None:
            parts.append(_wrapped("example", finding.counterexample.description))
    if equations:
        parts += ["", "equations", *(line(finding) for finding in equations)]
    return "\n".join([*parts, "", counts((*claims, *equations))])


def counts(findings: Sequence[Finding]) -> str:
    """How many hold, hold under an added condition, and fail."""
    verdicts = [finding.verdict for finding in findings]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS)


def markdown(claims: Sequence[Finding], equations: Sequence[Finding]) -> str:
    """A table of claims, a section of evidence for each, and a table of equations."""
    parts = ["# Claims of the papers\n", counts((*claims, *equations)) + ".\n", BRACKETS + "\n"]
    if claims:
        parts.append("| claim | statement | verdict | evidence | corrected statement | s |\n|---|---|---|---|---|---:|")
        for f in claims:
            corrected = "" if f.verdict == "holds" else f.condition
            cells = (f"{f.claim} ({f.source})", f.statement, f.verdict, headline(f), corrected, f"{f.seconds:.1f}")
            parts.append(_row(cells))
        parts += ["\n" + _section(f) for f in claims]
    if equations:
        parts.append(
            "\n## Equations\n\n| equation | statement | verdict | rests on | evidence |\n|---|---|---|---|---|"
        )
        for f in equations:
            parts.append(_row((f.claim, f.statement, f.verdict, f"{f.source}: `{f.code}`", headline(f))))
    return "\n".join(parts) + "\n"


def _section(finding: Finding) -> str:
    lines = [f"## {finding.claim}: {finding.verdict}\n", f"{finding.statement} ({finding.source})\n"]
    for title, figures in (
        ("figure", finding.measured.figures),
        ("corrected statement: figure", finding.measured.corrected),
    ):
        if not figures:
            continue
        if figures is finding.measured.corrected:
            lines.append(f"\nCorrected: {finding.condition}\n")
        lines.append(f"| {title} | value [interval] |\n|---|---|")
        lines += [_row((name.replace("_", " "), shown(figure))) for name, figure in figures.items()]
    if finding.counterexample is not None:
        names = ", ".join(f"`{name}` {a.shape}" for name, a in finding.counterexample.arrays.items())
        lines.append(f"\nCounterexample `{counterexample_file(finding.claim)}`: {finding.counterexample.description}")
        lines.append(f"Arrays: {names}.")
    lines.append(f"\nCode: `{finding.code}`, {finding.seconds:.1f} s.\n")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"  {label:<9}", subsequent_indent=" " * 11)


def shown(figure: Any) -> str:
    """A figure in a few characters, with its interval if it has one."""
    return figure.summary() if isinstance(figure, Figure) else number(figure)
