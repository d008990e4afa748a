"""The claims and the papers' experiments as Markdown, from what the commands wrote into `benchmarks/results`."""

import collections
import html
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from make import findings

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CLAIMS = ROOT / "benchmarks" / "results" / "claims" / "claims.json"
REPRODUCED = ROOT / "benchmarks" / "results" / "reproduce"
AUDITS = ROOT / "benchmarks" / "results" / "audit"
LOOPS = ROOT / "benchmarks" / "results" / "loops"
LIMITS = ROOT / "benchmarks" / "results" / "limits" / "limits.json"
LAYERS_AT_RANDOM = ("i.i.d. around a mean, 1/L", "i.i.d., 1/L", "i.i.d., L^-0.55", "i.i.d., 1/√L")


def claims_table(path: pathlib.Path = CLAIMS) -> str:
    """The ledger of claims as Markdown, from what `pdejax claims` wrote."""
    try:
        ledger = json.loads(path.read_text())
        found = ledger["results"]
        return "\n".join(
            [*_claims(found.get("claims", [])), *_equations(found.get("equations", [])), *_measured(ledger)]
        )
    except FileNotFoundError:
        return (
            "!!! note\n\n    The ledger's data are not in this checkout. `pdejax claims --out benchmarks/results/claims` "
            "computes them in minutes,\n    and the next build of this page shows them.\n"
        )


def _claims(claims: list[dict[str, Any]]) -> Iterator[str]:
    yield "| claim | statement | verdict | what holds |"
    yield "|---|---|---|---|"
    for claim in claims:
        name, statement, source, verdict, holds, support = (
            _cell(claim.get(key) or "") for key in ("claim", "statement", "source", "verdict", "condition", "support")
        )
        yield f"| {name} | {statement} ({source}) | **{verdict}** | {holds}{f' *({support})*' if support else ''} |"
    yield "\n## Evidence\n"
    for claim in claims:
        yield f"\n### {_cell(claim.get('claim'))}: {_cell(claim.get('verdict'))}\n"
        yield f"{_cell(claim.get('statement'))}\n"
        if claim.get("quote"):
            yield f"> {_cell(claim['quote'])}\n"
        if claim.get("rule"):
            yield f"**Judged.** {_cell(claim['rule'])}\n"
        for key, label in (("figures", "As stated"), ("corrected_figures", "Corrected")):
            figures = claim.get(key) or {}
            if figures:
                shown = "; ".join(f"{_cell(name)} {_figure(value)}" for name, value in figures.items())
                yield f"**{label}.** {shown}.\n"
        example = claim.get("counterexample")
        if example:
            yield f"**Counterexample.** {_cell(example.get('description') if isinstance(example, dict) else example)}\n"
        if claim.get("code"):
            yield f"Computed by `{claim['code']}`.\n"


def _equations(equations: list[dict[str, Any]]) -> Iterator[str]:
    """Every numbered equation as it is printed, with its verdict, in a table that is folded."""
    if not equations:
        return
    yield "\n## Equations\n"
    yield f'??? note "All {len(equations)} numbered equations as printed, and their verdicts"\n'
    yield "    | equation | as printed | checked | verdict | what holds |"
    yield "    |---|---|---|---|---|"
    for each in equations:
        name, quote, statement, verdict, holds = (
            _cell(each.get(key) or "") for key in ("claim", "quote", "statement", "verdict", "condition")
        )
        yield f"    | {name} | {quote} | {statement} | **{verdict}** | {holds} |"


def _measured(ledger: Mapping[str, Any]) -> Iterator[str]:
    """Where and with which code the ledger was measured, and how long it took."""
    if ledger.get("seconds"):
        took = f"{ledger['seconds'] / 60:.0f} minutes, with other work beside,"
        yield f"\nMeasured in {took} on {_machine(ledger)}, {_code(ledger)}.\n"


# The papers' experiments, from their data.


def _studies(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """The studies that were run, in the order of the papers."""
    found = [(path.parent, json.loads(path.read_text())) for path in folder.glob("*/result.json")]
    from pdejax.studies.papers import STUDIES

    order = list(STUDIES)

    def place(name: str) -> int:
        return order.index(name) if name in order else len(order)

    return sorted(found, key=lambda pair: place(pair[0].name))


def reproduced(folder: pathlib.Path = REPRODUCED) -> str:
    """The studies as Markdown: question, verdict, pictures, and every row paper | ours | null."""
    studies = _studies(folder)
    if not studies:
        return (
            "!!! note\n\n    No results are in this checkout. `pdejax reproduce --out benchmarks/results/reproduce` computes "
            "them,\n    and the next build of this page shows them.\n"
        )
    return "\n".join(line for path, content in studies for line in _reproduced(path, content))


def reproduced_images(folder: pathlib.Path = REPRODUCED) -> list[str]:
    """The pictures of the studies, by their path in the repository."""
    return [
        (path / figure["file"]).relative_to(ROOT).as_posix()
        for path, content in _studies(folder)
        for figure in content["figures"]
    ]


def _reproduced(path: pathlib.Path, content: dict[str, Any]) -> Iterator[str]:
    count = len(content["seeds"])
    yield f"\n## {_cell(content['title'])}\n"
    yield f"{_cell(content['question'])} ({_cell(content['source'])})\n"
    yield f"**{_cell(content['verdict'])}**\n"
    yield (
        f"Preset `{content['preset']}`, {count} seed{'s' if count > 1 else ''}, {content['seconds']:.0f} s on "
        f"{_machine(content)}, {_code(content)}; systems compared: "
        f"{_cell(content['pairing'])}.\n"
    )
    for figure in content["figures"]:
        address = (
            f"files/{(path / figure['file']).relative_to(ROOT).as_posix()}" if ROOT in path.parents else figure["file"]
        )
        yield f"![{_cell(figure['caption'])}]({address})\n\n*{_cell(figure['caption'])}*\n"
    yield f'??? note "All {len(content["table"])} rows"\n'
    for line in _rows(content["table"]):
        yield f"    {line}"
    yield ""


def came_out(folder: pathlib.Path = REPRODUCED) -> str:
    """The findings of the experiments as the report's first screen has them, and the sentence that follows from each."""
    from pdejax.runs.report._html import finding_table, findings
    from pdejax.runs.report._read import read_results

    if not _studies(folder):
        return reproduced(folder)
    found = read_results(folder)
    minutes = sum(study.result.seconds or 0 for study in found.studies) / 60
    lines = [finding_table(findings(found), lambda study: "", lambda study, index, key: "").markdown()]
    lines += [f"\n{len(found.studies)} studies, {minutes:.0f} minutes on {_machine(found.studies[0].raw or {})}:\n"]
    lines += [f"- **{_cell(study.title)}.** {_cell(study.result.verdict)}" for study in found.studies]
    return "\n".join(lines)


def kept(folder: pathlib.Path = REPRODUCED) -> str:
    """Which studies are kept at which preset, with how many seeds of those that the preset has, on which data, and how long they
    took; presets, seeds and times are those of the results."""
    found = [content for _, content in _studies(folder)]
    if not found:
        return ""
    lines = ["| study | preset | seeds | data | minutes |", "|---|---|---|---|---|"]
    for content in found:
        config, count = content.get("config") or {}, len(content["seeds"])
        of = config.get("seeds", count)
        seeds = str(count) if count == of else f"{count} of {of}"
        trained = [config.get("train") or {}, *(config.get("options") or {}).get("architectures", {}).values()]
        data = ", ".join(dict.fromkeys(one["dataset"] for one in trained if one.get("dataset"))) or "none"
        minutes = f"{content['seconds'] / 60:.1f}"
        preset = content["preset"] + "".join(
            f" (as `{other}`)" for other in _alike(content["study"], content["preset"])
        )
        lines.append(f"| `{content['study']}` | {preset} | {seeds} | {_cell(data)} | {minutes} |")
    groups = {
        preset: [c for c in found if c["preset"] == preset] for preset in dict.fromkeys(c["preset"] for c in found)
    }
    times = "; ".join(
        f"{len(group)} at `{preset}`, together {sum(c['seconds'] for c in group) / 60:.0f} minutes"
        for preset, group in groups.items()
    )
    longest = sorted(found, key=lambda content: -content["seconds"])[:3]
    shown = ", ".join(f"`{content['study']}` ({content['seconds'] / 60:.0f})" for content in longest)
    said = (
        f"{times}, on {_machine(found[0])} that had other work too; networks that an earlier run had trained were "
        "read, which takes no time. "
        f"Most take {shown}."
    )
    return "\n".join([*lines, f"\n{said}\n"])


def _alike(study: str, preset: str) -> list[str]:
    """The other presets of a study that have the same settings."""
    from pdejax.studies.papers import STUDIES

    presets = STUDIES[study].presets if study in STUDIES else {}
    return [other for other in presets if other != preset and presets[other] == presets.get(preset)]


def step(folder: pathlib.Path = REPRODUCED) -> str:
    """What the studies of the step say of v2's correlations with the input."""
    said = {path.name: content["verdict"] for path, content in _studies(folder)}
    return "\n".join(f"> {_cell(said[name])}\n" for name in ("readings", "paper-size", "residual") if name in said)


def _machine(content: Mapping[str, Any]) -> str:
    environment = content["environment"]
    return f"{environment['device']} ({environment['cores']} cores), jax {environment['versions']['jax']}"


def _code(content: Mapping[str, Any]) -> str:
    from pdejax.runs._format import code

    return code(content.get("code"))


def _rows(rows: list[dict[str, Any]]) -> Iterator[str]:
    from pdejax.runs._records import FEW_SEEDS

    seeds = max((len(row["ours"]["values"]) for row in rows if row["ours"]), default=0)
    ends = "95 % interval" if seeds >= FEW_SEEDS else "range"
    yield f"| quantity | paper | ours, with {ends} over {seeds} seeds | null |"
    yield "|---|---|---|---|"
    for row in rows:
        name = _cell(row["quantity"]) + (f" [{_cell(row['unit'])}]" if row["unit"] else "")
        null = f"{_figure(row['null'])} ({_cell(row['null_name'])})" if row["null"] else "–"
        note = f"; {_cell(row['note'])}" if row["note"] else ""
        yield f"| {name} | {_cell(row['paper'] or '–')} | {_figure(row['ours'])}{note} | {null} |"


def audits(folder: pathlib.Path = AUDITS) -> str:
    """The audits as Markdown: networks beside one another, a line per figure, then the verdicts of each."""
    found = [(path.parent, json.loads(path.read_text())) for path in sorted(folder.glob("*/result.json"))]
    if not found:
        return (
            "!!! note\n\n    No audits are in this checkout. `pdejax audit NETWORK --out benchmarks/results/audit/NAME` computes "
            "one,\n    and the next build of this page shows it.\n"
        )
    return "\n".join(_audits(found))


def audit_findings(folder: pathlib.Path = AUDITS) -> str:
    """What the audits found, as a numbered list."""
    return "\n".join(_cell(line) for line in findings.listed(folder)) or "Nothing was measured yet.\n"


def loops(folder: pathlib.Path = LOOPS) -> str:
    """The loops as Markdown: as the audits, with the tables of each."""
    found = [(path.parent, json.loads(path.read_text())) for path in sorted(folder.glob("*/result.json"))]
    if not found:
        return (
            "!!! note\n\n    No loops are in this checkout. `pdejax loops NETWORK --out benchmarks/results/loops/NAME` computes "
            "one,\n    and the next build of this page shows it.\n"
        )
    return "\n".join(_audits(found, tables=True))


def literature(folder: pathlib.Path = LOOPS, checks: pathlib.Path = LIMITS) -> str:
    """What kept limits and loops say beside what was published."""
    found = json.loads(checks.read_text())
    checked, waiting = found["results"]["check"], found["results"]["metastability"]["waiting"]
    critical = found["results"]["noise"]["critical"]
    own = [x for x in checked if x["recipe"] in LAYERS_AT_RANDOM]

    def said(recipe: str) -> str:
        counts = collections.Counter(x["verdict"] for x in own if x["recipe"] == recipe)
        return f"{recipe}: {', '.join(f'{verdict} {count}' for verdict, count in counts.items())}"

    against = sum(x["verdict"] not in (x["truth"], "not decided") for x in own)
    off = sum(
        answer.startswith(("NOT", "not ")) for name, answer in found["verdicts"].items() if name.startswith("waiting")
    )
    kinds = {path.parent.name: json.loads(path.read_text())["results"] for path in sorted(folder.glob("*/result.json"))}
    rest = [name for name, x in kinds.items() if 2 * x["kinds"]["fixed point"] <= x["sequences"]]
    loops = [
        f"{name}: {', '.join(f'{kind} {count}' for kind, count in x['kinds'].items() if count)}"
        for name, x in kinds.items()
    ]
    rows = [
        [
            "independent layers at 1/√L have an SDE, at 1/L their noise averages out (arXiv 2206.06929)",
            "; ".join(map(said, LAYERS_AT_RANDOM)),
            f"against it: {against} of {len(own)} checks",
        ],
        [
            "clusters wait for a depth that is exponential in β (arXiv 2410.06833)",
            "d ln T/dβ → " + ", ".join(f"{x['slope'][0]:.4f} for {x['expected']:.4f}" for x in waiting),
            f"against it: {off} of {len(waiting)} angles",
        ],
        [
            "two tokens under noise in common: a transition in interaction strength and dimension (arXiv 2601.21942)",
            "opposite tokens stay so from β = "
            + ", ".join(f"{x['critical']:.3f} (d = {x['d']})" for x in critical if x["critical"] is not None),
            f"against it: {sum(x['critical'] is None for x in critical)} of {len(critical)} dimensions",
        ],
        [
            "layers of many sequence models converge towards a fixed point (arXiv 1909.01377)",
            "; ".join(loops),
            f"against it: {len(rest)} of {len(kinds)} [networks](../results/loops.md), {', '.join(rest)}, in which most inputs "
            "do not come to rest",
        ],
    ]
    lines = [["published", "measured", ""], ["---"] * 3, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def loop_images(folder: pathlib.Path = LOOPS) -> list[str]:
    """The pictures of the loops, by their path in the repository."""
    return audit_images(folder)


def audit_images(folder: pathlib.Path = AUDITS) -> list[str]:
    """The pictures of the audits, by their path in the repository."""
    return [path.relative_to(ROOT).as_posix() for path in sorted(folder.glob("*/*.png"))]


def _audits(found: list[tuple[pathlib.Path, dict[str, Any]]], tables: bool = False) -> Iterator[str]:
    names = [_cell(content["results"]["name"]) for _, content in found]
    rows = [{row["quantity"]: row for row in content["table"]} for _, content in found]
    yield f"| figure | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for quantity in dict.fromkeys(quantity for table in rows for quantity in table):
        here = [table.get(quantity) for table in rows]
        unit = next(row["unit"] for row in here if row)
        cells = (_figure(row["ours"]) + _null(row) if row else "–" for row in here)
        yield f"| {_cell(quantity)}{f' [{_cell(unit)}]' if unit else ''} | {' | '.join(cells)} |"
    for place, content in found:
        about = content["results"]
        yield f"\n## {_cell(about['name'])}\n"
        yield f"**{_cell(content['verdict'])}**\n"
        size = f"{about['sequences']} sequences of {_cell(about['data'])}, {content['seconds']:.0f} s"
        yield f"{_cell(about['network'])}. {size} on {content['environment']['device']}.\n"
        yield from (f"- {_cell(question)}: {_cell(answer)}" for question, answer in content["verdicts"].items())
        yield ""
        if tables:
            from pdejax.runs._findings import table_from_json

            for table in filter(None, map(table_from_json, content["tables"])):
                yield f"{_cell(table.caption)}:\n\n{table.markdown()}\n"
        for figure in content["figures"]:
            if ROOT in place.parents:
                address = f"files/{(place / figure['file']).relative_to(ROOT).as_posix()}"
                yield f"![{_cell(figure['caption'])}]({address})\n\n*{_cell(figure['caption'])}*\n"


def _null(row: dict[str, Any]) -> str:
    null = row["null"]
    return f"; {_cell(row['null_name'])} {_figure(null.get('value', null.get('mean')))}" if null else ""


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        ends = [value.get("low"), value.get("high")]
        middle = _figure(value.get("value", value.get("mean")))
        return middle if None in ends else f"{middle} [{_figure(ends[0])}, {_figure(ends[1])}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _cell("–" if value is None else value)
    return f"{value:.4g}"


def _cell(value: Any) -> str:
    text = " ".join(str("" if value is None else value).split())
    return re.sub(r"([\\`*_\[\]|$])", r"\\\1", html.escape(text, quote=False))
