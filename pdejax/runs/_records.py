"""What a run leaves: a result with its table and its pictures, as JSON and back."""

import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pdejax._figure import Figure
from pdejax.runs import _format
from pdejax.runs._files import plain, write_json, write_whole
from pdejax.runs._findings import (
    Finding,
    as_number,
    counterexample_file,
    figure_from_json,
    figure_to_json,
    markdown,
    table_from_json,
    table_to_json,
    text,
)
from pdejax.runs._table import Cell, Column, Table

if TYPE_CHECKING:
    import xarray as xr


FEW_SEEDS = 5  # below so many there is a range over seeds, and no interval


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a result: a quantity as the paper has it, as we measured it, and as it is where there is nothing to find.

    - `ours`: a figure with its interval over seeds, of which `seeds` holds each one's value; the same for `null` and
      `null_seeds`, and `null_name` says which null model. None where nothing was measured.
    - `paper`: their figure as printed, None where they give none. `unit`; `note`: what a reader must know beside it.
    """

    quantity: str
    ours: Figure | None
    seeds: tuple[float, ...] = ()
    unit: str = ""
    paper: str | None = None
    null: Figure | None = None
    null_seeds: tuple[float, ...] = ()
    null_name: str | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {
            "quantity": self.quantity,
            "unit": self.unit,
            "paper": self.paper,
            "ours": figure_to_json(self.ours, self.seeds),
            "null": figure_to_json(self.null, self.null_seeds),
            "null_name": self.null_name,
            "note": self.note,
        }

    @staticmethod
    def from_json(saved: Mapping[str, Any], place: int = 0) -> "Row":
        """Make a row from what `to_json` left, or from what is left of it; `place` names a row without a quantity."""
        ours, null = saved.get("ours"), saved.get("null")
        paper, name = saved.get("paper"), text(saved.get("null_name"))
        return Row(
            text(saved.get("quantity")) or f"line {place + 1}",
            figure_from_json(ours),
            _seeds(ours),
            text(saved.get("unit")),
            None if paper is None else text(paper),
            figure_from_json(null),
            _seeds(null),
            name or None,
            text(saved.get("note")),
        )


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a result: the `file` it is saved as, a `caption`, and `draw()`, which makes the Matplotlib figure."""

    file: str
    caption: str
    draw: Callable[[], Any] | None = None

    def __repr__(self) -> str:
        return f"Picture({self.file!r}, {self.caption!r})"

    def png(self) -> bytes:
        """Return the image, without touching the user's Matplotlib backend."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        assert self.draw is not None
        figure, buffer = self.draw(), io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def comparison(rows: Sequence[Row]) -> Table:
    """Return the table paper | ours | null of these rows."""
    columns = [Column("quantity"), Column("paper", right=True), Column("ours", right=True), Column("null", right=True)]
    lines = []
    for row in rows:
        null = None if row.null is None else Cell(row.null, small=row.null_name or "")
        quantity = row.quantity + (f" [{row.unit}]" if row.unit else "")
        lines.append((quantity, row.paper, row.ours, "" if null is None else null))
    return Table(columns, lines)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """What a study found; `print(result)` shows it.

    - `study`, `title`, `question`, `source`: its name, what it asks, and where in the papers.
    - `config`, `preset`, `seeds`, `environment`, `config_hash`, `seconds`: what was run, on what, how long it took (parts
      that were kept included). `pairing`: which models stand beside which, in words.
    - `code`: which code measured: digests of the study's (`measured_by`) and of the `library`, and the `commit` of its checkout
      if it is one; empty for what was kept without.
    - `results`: the numbers, as JSON has them. `rows`: those of the table paper | ours | null.
    - `headline`: the quantity of the row that a summary of many results shows.
    - `verdict`: a sentence made from the numbers; `verdicts`: answers by question. `passed`: whether all is as it should be.
    - `tables`, `notes`: what is printed besides. `dataset`: all data; `pictures`; `files` that were written.
    - `findings`: what was found about each claim, by its id.
    """

    study: str
    title: str = ""
    question: str = ""
    source: str = ""
    pairing: str | None = None
    preset: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config_hash: str = ""
    seeds: tuple[int, ...] = ()
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    code: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    headline: str = ""
    verdict: str = ""
    verdicts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    passed: bool = True
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    dataset: "xr.Dataset | None" = None
    pictures: tuple[Picture, ...] = ()
    findings: Mapping[str, Finding] = dataclasses.field(default_factory=dict)
    data: str | None = None
    seconds: float | None = None
    files: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        tables = "".join(table.html() for table in self._tables())
        return f"<h3>{self.title or self.study}</h3>{tables}<pre>{self.summary()}</pre>"

    def to_xarray(self) -> "xr.Dataset":
        """Return all data. Raises `ValueError` for a result without, such as one that was read from its JSON."""
        if self.dataset is None:
            raise ValueError(f"Result.to_xarray: {self.study} has no data here; open {self.data or 'its data file'}.")
        return self.dataset

    def text(self) -> str:
        """Write the result for a terminal: title, tables, verdicts, and where it was measured."""
        tables = "\n\n".join(table.text() for table in self._tables())
        heading = f"{self.title or self.study}" + (f" ({self.source})" if self.source else "")
        return "\n".join(part for part in (heading, tables, self.summary()) if part)

    def summary(self) -> str:
        """Write notes, verdicts, and where it was measured: all but the tables."""
        lines = [*self.notes]
        width = max((len(question) for question in self.verdicts), default=0)
        lines += [f"{question:<{width}}  {answer}" for question, answer in self.verdicts.items()]
        lines += [self.verdict] if self.verdict else []
        about = [_format.seconds(self.seconds), _format.environment(self.environment), _format.code(self.code)]
        about += [f"seed{'s' if len(self.seeds) > 1 else ''} {' '.join(map(str, self.seeds))}"] if self.seeds else []
        return "\n".join([*lines, "measured: " + "; ".join(part for part in about if part)])

    def to_json(self) -> dict[str, Any]:
        """Return what the result's JSON file holds."""
        content: dict[str, Any] = {
            "study": self.study,
            "title": self.title,
            "question": self.question,
            "source": self.source,
            "pairing": self.pairing,
            "preset": self.preset,
            "config": self.config,
            "config_hash": self.config_hash,
            "seeds": self.seeds,
            "environment": self.environment,
            "code": self.code,
            "results": self.results,
            "table": [row.to_json() for row in self.rows],
            "headline": self.headline,
            "verdict": self.verdict,
            "verdicts": self.verdicts,
            "tables": [table_to_json(table) for table in self.tables if table.rows],
            "notes": self.notes,
            "passed": self.passed,
            "figures": [{"file": picture.file, "caption": picture.caption} for picture in self.pictures],
            "data": self.data,
            "seconds": self.seconds,
        }
        always = ("study", "config", "environment", "seeds", "verdict", "seconds", "passed")
        return plain(
            {key: value for key, value in content.items() if key in always or value not in (None, "", [], {}, ())}
        )

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> "Result":
        """Make a result from what `to_json` left, or from what is left of it: what cannot be read is left out."""
        return Result(
            study=text(saved.get("study")),
            title=text(saved.get("title")),
            question=text(saved.get("question")),
            source=text(saved.get("source")),
            pairing=text(saved.get("pairing")) or None,
            preset=text(saved.get("preset")) or None,
            config=_mapping(saved.get("config")),
            config_hash=text(saved.get("config_hash")),
            seeds=tuple(seed for seed in _list(saved.get("seeds")) if isinstance(seed, int)),
            environment=_mapping(saved.get("environment")),
            code=_mapping(saved.get("code")),
            results=_mapping(saved.get("results")),
            rows=tuple(
                Row.from_json(row, i) for i, row in enumerate(_list(saved.get("table"))) if isinstance(row, Mapping)
            ),
            headline=text(saved.get("headline")),
            verdict=text(saved.get("verdict")),
            verdicts={text(k): text(v) for k, v in _mapping(saved.get("verdicts")).items()},
            passed=saved.get("passed") is not False,
            tables=tuple(found for found in map(table_from_json, _list(saved.get("tables"))) if found is not None),
            notes=tuple(text(note) for note in _list(saved.get("notes"))),
            pictures=tuple(_picture(entry) for entry in _list(saved.get("figures"))),
            data=text(data) or None if isinstance(data := saved.get("data"), str) else None,
            seconds=as_number(saved.get("seconds")),
        )

    def save(self, folder: pathlib.Path, stem: str | None = None) -> "Result":
        """Write `<stem>.json`, `<stem>.nc` and the pictures to `folder`; return the result with its `files`.

        Findings are written as `<stem>.md`, the arrays of their counterexamples as `counterexamples/*.npz`.

        `stem` is the study's name by default. Every file is written whole, the JSON last, so that its presence says that the
        rest is whole. Raises `ResultError` where that fails.
        """
        stem = self.study if stem is None else stem
        written = []
        if self.dataset is not None:
            content = self.dataset.to_netcdf(engine="scipy", format="NETCDF3_64BIT")
            write_whole(folder / f"{stem}.nc", bytes(content))
            written.append(folder / f"{stem}.nc")
        for picture in self.pictures:
            write_whole(folder / picture.file, picture.png())
            written.append(folder / picture.file)
        if self.findings:
            write_whole(folder / f"{stem}.md", markdown(self.title, list(self.findings.values())).encode())
            written.append(folder / f"{stem}.md")
        for name, finding in self.findings.items():
            if finding.counterexample is not None:
                path = folder / counterexample_file(name)
                write_whole(path, finding.counterexample.npz())
                written.append(path)
        data = None if self.dataset is None else f"{stem}.nc"
        saved = dataclasses.replace(self, data=data)
        path = folder / f"{stem}.json"
        write_json(path, saved.to_json())
        return dataclasses.replace(saved, files=tuple(str(file) for file in (path, *written)))

    def _tables(self) -> tuple[Table, ...]:
        return (comparison(self.rows), *self.tables) if self.rows else self.tables


def _seeds(saved: Any) -> tuple[float, ...]:
    values = saved.get("values") if isinstance(saved, Mapping) else None
    numbers = (as_number(value) for value in _list(values))
    return tuple(math.nan if value is None else value for value in numbers)


def _picture(entry: Any) -> Picture:
    entry = entry if isinstance(entry, Mapping) else {"file": entry}
    return Picture(text(entry.get("file")), text(entry.get("caption")))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
