"""Figures as JSON and back."""

import dataclasses
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from pdejax._figure import Figure, number
from pdejax.runs._files import plain
from pdejax.runs._table import SPEC, Cell, Column, Table, markdown_text


def figure_to_json(figure: Figure | None, seeds: Sequence[float] = ()) -> dict[str, Any] | None:
    """Return a figure as JSON values: `mean`, `low`, `high` (None where there is no interval), and `values` by seed."""
    if figure is None:
        return None
    found: dict[str, Any] = {"mean": float(figure), "low": float(figure.low), "high": float(figure.high)}
    return plain(found | ({"values": list(seeds)} if seeds else {}))


def figure_from_json(saved: Any) -> Figure | None:
    """Make a figure from a number or from an object with a mean (or value) and an interval; None for anything else."""
    if isinstance(saved, Mapping):
        value = as_number(saved.get("mean", saved.get("value")))
        return None if value is None else Figure(value, as_number(saved.get("low")), as_number(saved.get("high")))
    value = as_number(saved)
    return None if value is None else Figure(value)


def as_number(value: Any) -> float | None:
    """Return a finite number as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond floating point
        return None


def table_to_json(table: Table) -> dict[str, Any]:
    """Return a table as JSON values: its caption, its columns, and its rows of numbers, texts, figures and None."""
    columns = [{"head": c.head, "spec": c.spec, "right": c.right} for c in table.columns]
    return {
        "caption": table.caption,
        "columns": columns,
        "rows": [[_cell_to_json(x) for x in row] for row in table.rows],
    }


def _cell_to_json(cell: Any) -> Any:
    value, small = (cell.value, cell.small) if isinstance(cell, Cell) else (cell, "")
    found = figure_to_json(value) if isinstance(value, Figure) else plain(value)
    return {"value": found, "small": small} if small else found


def table_from_json(saved: Any) -> Table | None:
    """Make a table from what `table_to_json` left, or from what is left of it; None for what is no table."""
    columns, rows = (saved.get(key) if isinstance(saved, Mapping) else None for key in ("columns", "rows"))
    if not (isinstance(columns, list) and columns and isinstance(rows, list)):
        return None
    made = []
    for column in columns:
        about = column if isinstance(column, Mapping) else {"head": column}
        spec = about.get("spec")
        spec = spec if isinstance(spec, str) and SPEC.fullmatch(spec) else None
        made.append(Column(text(about.get("head")), spec, right=about.get("right") is True))
    whole = [[_cell_from_json(x) for x in row] for row in rows if isinstance(row, list) and len(row) == len(made)]
    return Table(made, whole, text(saved.get("caption")))


def _cell_from_json(saved: Any) -> Any:
    if isinstance(saved, Mapping) and "small" in saved:
        return Cell(_cell_from_json(saved.get("value")), small=text(saved["small"]))
    if isinstance(saved, Mapping):
        return figure_from_json(saved)
    if saved is None or (isinstance(saved, int) and abs(saved) < 2**53):
        return saved
    return as_number(saved) if isinstance(saved, int | float) else text(saved)


def text(value: Any) -> str:
    """Write what was saved as text; nothing for None. Control characters would spoil a page."""
    if value is None:
        return ""
    found = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in found).strip()


Verdict = Literal["holds", "holds under an added condition", "fails", "not shown", "not measured", "definition"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
HOLDS, CONDITIONAL, FAILS, NOT_SHOWN, NOT_MEASURED, DEFINITION = VERDICTS
# What each verdict says, of every claim alike.
RULES: Mapping[Verdict, str] = {
    HOLDS: "the evidence meets the paper's own hypotheses and bears the statement out",
    CONDITIONAL: "contradicted as printed; it holds once a condition is added that the paper does not state and that networks of "
    "the kind it is about can meet",
    FAILS: "contradicted as printed, and no such condition saves it: what is true instead is another statement",
    NOT_SHOWN: "the evidence cannot tell: the test lacks power, or the hypotheses were not met by what was measured",
    NOT_MEASURED: "a figure that the verdict needs is missing or no number",
    DEFINITION: "an equation that says what a symbol means; what is measured is that the library computes it as printed",
}
# Whether the corrected statement is borne out by figures of its own.
Support = Literal["borne out", "not borne out", "not measured"]
BORNE_OUT, NOT_BORNE_OUT, _ = SUPPORTS = get_args(Support)
WIDTH = 110  # of text for a terminal
BRACKETS = (
    "Brackets: the 95 % interval of a mean over seeds (of a ratio: of its geometric mean), or the range over seeds of what is "
    "claimed of every case."
)

# Figures by name: numbers, or `Figure`s over seeds.
Evidence = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """Arrays, as few and small as we could make them, that contradict a claim; `description` says how to see it."""

    description: str
    arrays: dict[str, np.ndarray]

    def npz(self) -> bytes:
        """Return the arrays as the content of an `.npz` file."""
        content = io.BytesIO()
        np.savez(content, **self.arrays)  # pyright: ignore[reportArgumentType]
        return content.getvalue()


@dataclasses.dataclass(frozen=True)
class Measured:
    """Evidence about a claim: `figures` about the statement as printed, `corrected` about the corrected one, and the smallest
    `counterexample`, None if none was found."""

    figures: Evidence
    corrected: Evidence = dataclasses.field(default_factory=dict)
    counterexample: Counterexample | None = None

    @property
    def evidence(self) -> dict[str, Any]:
        """All figures, as a claim's `judge` takes them."""
        return {**self.figures, **self.corrected}

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as JSON values, arrays included, from which `from_json` makes it again."""
        example = self.counterexample
        arrays = (
            {} if example is None else {k: [str(a.dtype), list(a.shape), a.ravel()] for k, a in example.arrays.items()}
        )
        found = None if example is None else {"description": example.description, "arrays": arrays}
        return plain(
            {"figures": _to_json(self.figures), "corrected": _to_json(self.corrected), "counterexample": found}
        )

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> "Measured":
        """Make the evidence again from what `to_json` gave."""
        example = saved["counterexample"]
        if example is not None:
            arrays = {}
            for name, (dtype, shape, values) in example["arrays"].items():
                flat = [math.nan if v is None else v for v in values]
                arrays[name] = np.asarray(flat, dtype).reshape(shape)
            example = Counterexample(example["description"], arrays)
        return Measured(figures_from_json(saved["figures"]), figures_from_json(saved["corrected"]), example)


_WORDS = ("claim", "statement", "quote", "source", "verdict", "rule", "condition", "support")


@dataclasses.dataclass(frozen=True, repr=False)
class Finding:
    """A claim with its evidence and its verdict.

    - `claim`, `statement`, `source`: which one, what is claimed and where; `quote`: the paper's own words.
    - `measured`: the evidence; `verdict` from it by the `rule`; `headline`: the figures that a summary shows.
    - `condition`: the corrected statement; `support`: whether its own figures bear it out, empty where there is none.
    - `code`: where it is measured, `module.function`, and how many `seconds` that took.
    """

    claim: str
    statement: str
    source: str
    verdict: Verdict | str
    condition: str
    measured: Measured
    code: str = ""
    headline: tuple[str, ...] = ()
    seconds: float = 0.0
    quote: str = ""
    rule: str = ""
    support: Support | str = ""

    def __repr__(self) -> str:
        lines = [paragraph(self), *(f"  {name.replace('_', ' ')}: {_shown(x)}" for name, x in self.evidence.items())]
        return "\n".join(lines)

    @property
    def evidence(self) -> dict[str, Any]:
        """All figures by name."""
        return self.measured.evidence

    @property
    def is_equation(self) -> bool:
        """Whether it is about a numbered equation, not about one of C1 … C17."""
        return not self.claim.startswith("C")

    @property
    def counterexample(self) -> Counterexample | None:
        """The smallest one, None if none was found."""
        return self.measured.counterexample

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values; the arrays of its counterexample by shape and file alone."""
        found = {key: getattr(self, key) for key in _WORDS}
        found["figures"], found["corrected_figures"] = (
            _to_json(self.measured.figures),
            _to_json(self.measured.corrected),
        )
        found["counterexample"] = None
        example = self.counterexample
        if example is not None:
            arrays = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in example.arrays.items()}
            file = counterexample_file(self.claim)
            found["counterexample"] = {"description": example.description, "file": file, "arrays": arrays}
        return plain(found | {"code": self.code, "seconds": self.seconds})

    @staticmethod
    def from_json(saved: Mapping[str, Any], place: int = 0) -> "Finding":
        """Make a finding from what `to_json` left, or from what is left of it; `place` names a claim without a name.

        The arrays of a counterexample are not in it, only what it shows.
        """
        words: dict[str, Any] = {key: text(saved.get(key)) for key in (*_WORDS, "code")}
        words["claim"] = words["claim"] or f"entry {place + 1}"
        example = saved.get("counterexample")
        described = text(example.get("description") if isinstance(example, Mapping) else example)
        found = None if not described else Counterexample(described, {})
        figures, corrected = (saved.get(key) for key in ("figures", "corrected_figures"))
        measured = Measured(
            figures_from_json(figures if isinstance(figures, Mapping) else {}),
            figures_from_json(corrected if isinstance(corrected, Mapping) else {}),
            found,
        )
        return Finding(**words, measured=measured, seconds=as_number(saved.get("seconds")) or 0.0)


def counterexample_file(claim: str) -> str:
    """Return where the arrays lie within the folder that a ledger is saved to."""
    return f"counterexamples/{file_name(claim)}.npz"


def file_name(claim: str) -> str:
    """Return a claim's name as the name of a file."""
    return "".join(c if c.isalnum() else "_" for c in claim).strip("_")


def figures_from_json(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Make figures by name from what a ledger saved: an object with `mean`, `low`, `high`, or a number."""
    found: dict[str, Any] = {}
    for name, item in saved.items():
        if isinstance(item, Mapping):
            figure = figure_from_json(item)
            found[name] = Figure(math.nan) if figure is None else figure
        else:
            found[name] = math.nan if item is None else item
    return found


def _to_json(figures: Evidence) -> dict[str, Any]:
    return {name: figure_to_json(x) if isinstance(x, Figure) else x for name, x in figures.items()}


COLUMNS = (Column("claim", width=8), Column("verdict", width=30), Column("s", ".1f", 6, right=True), Column("evidence"))


def cells(finding: Finding) -> tuple[str, str, float, str]:
    """Return a finding as a line of the table of `COLUMNS`."""
    return finding.claim, finding.verdict, finding.seconds, headline(finding)


def overview(findings: Sequence[Finding]) -> Table:
    """Return a table of verdicts with the figures that settle them."""
    return Table(COLUMNS, [cells(finding) for finding in findings])


def headline(finding: Finding) -> str:
    """Write the figures that settle it, with their intervals."""
    evidence = finding.evidence
    return ", ".join(f"{name.replace('_', ' ')} {_shown(evidence.get(name))}" for name in finding.headline)


def paragraph(finding: Finding) -> str:
    """Write what is claimed, what holds instead, and the counterexample."""
    lines = [f"{finding.claim} {finding.verdict}", _wrapped("claimed", f"{finding.statement} ({finding.source})")]
    if finding.condition:
        lines.append(_wrapped("instead", corrected(finding)))
    if finding.counterexample is not None:
        lines.append(_wrapped("example", finding.counterexample.description))
    return "\n".join(lines)


def corrected(finding: Finding) -> str:
    """Write what holds instead, and whether figures of its own bear it out."""
    return finding.condition + (f" [{finding.support}]" if finding.support else "")


def count_verdicts(findings: Sequence[Finding]) -> str:
    """Write how many findings have each verdict: claims alone, then the numbered equations."""
    groups = {
        "claims": [finding.verdict for finding in findings if not finding.is_equation],
        "equations": [finding.verdict for finding in findings if finding.is_equation],
    }
    counted = {
        name: ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)
        for name, found in groups.items()
        if found
    }
    return "; ".join(f"{len(groups[name])} {name}: {text}" for name, text in counted.items())


def markdown(title: str, findings: Sequence[Finding]) -> str:
    """Write findings as Markdown: a table of claims, a section of evidence for each, and a table of equations."""
    claims = [finding for finding in findings if not finding.is_equation]
    equations = [finding for finding in findings if finding.is_equation]
    said = {finding.verdict for finding in findings}
    rules = "\n".join(f"- **{verdict}**: {rule}." for verdict, rule in RULES.items() if verdict in said)
    parts = [f"# {title}", count_verdicts(findings) + ".", rules, BRACKETS]
    if claims:
        heads = ("claim", "statement", "verdict", "evidence", "corrected statement")
        columns = [*(Column(head) for head in heads), Column("s", ".1f", right=True)]
        lines = [
            (
                f"{f.claim} ({f.source})",
                f.statement,
                f.verdict,
                headline(f),
                corrected(f),
                f.seconds,
            )
            for f in claims
        ]
        parts += [Table(columns, lines).markdown(), *(_section(finding) for finding in claims)]
    if equations:
        columns = [Column(head) for head in ("equation", "statement", "as printed", "verdict", "rests on", "evidence")]
        lines = [(f.claim, f.statement, f.quote, f.verdict, f"{f.source}: {f.code}", headline(f)) for f in equations]
        parts += ["## Equations", Table(columns, lines).markdown()]
    return "\n\n".join(parts) + "\n"


def _section(finding: Finding) -> str:
    parts = [f"## {finding.claim}: {finding.verdict}", markdown_text(f"{finding.statement} ({finding.source})")]
    if finding.quote:
        parts.append(f"> {markdown_text(finding.quote)}")
    if finding.rule:
        parts.append(f"Judged: {markdown_text(finding.rule)}")
    for title, figures in (
        ("figure", finding.measured.figures),
        ("corrected statement: figure", finding.measured.corrected),
    ):
        if figures:
            if figures is finding.measured.corrected:
                parts.append(f"Corrected: {markdown_text(corrected(finding))}")
            lines = [(name.replace("_", " "), _shown(figure)) for name, figure in figures.items()]
            parts.append(Table((Column(title), Column("value [interval]")), lines).markdown())
    example = finding.counterexample
    if example is not None:
        names = ", ".join(f"`{name}` {a.shape}" for name, a in example.arrays.items())
        file = counterexample_file(finding.claim)
        parts.append(f"Counterexample `{file}`: {markdown_text(example.description)}\n\nArrays: {names}.")
    return "\n\n".join([*parts, f"Code: `{finding.code}`, {finding.seconds:.1f} s."])


def _shown(figure: Any) -> str:
    """A figure in a few characters, with its interval if it has one; a dash for what is missing."""
    if figure is None or math.isnan(float(figure)):
        return "–"
    return figure.summary() if isinstance(figure, Figure) else number(figure)


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"  {label:<9}", subsequent_indent=" " * 11)
