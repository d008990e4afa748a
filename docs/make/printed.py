"""Which figures that the papers print are met, by which settings, and which are not: from what `pdejax reproduce` wrote."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import xarray as xr
from make.results import REPRODUCED, _cell, _studies

ABOUT = math.sqrt(10)  # "about" a power of ten: within half an order
NUMBER = r"-?\d+(?:\.(?P<digits>\d+))?(?:e-?\d+)?"
LAYER = re.compile(r"(?:layers? (?P<layer>\d+)(?:–\d+)?)(?:, )?")
Point = tuple[str, str]  # as printed, and where ours lies beside it


@dataclasses.dataclass
class Curve:
    """A printed figure, or one by layer: what it is of, and the points of each of our settings."""

    study: str
    name: str
    settings: dict[str, list[Point]]

    @property
    def printed(self) -> tuple[str, ...]:
        """The figures as printed."""
        return tuple(paper for paper, _ in next(iter(self.settings.values())))


def met(folder: pathlib.Path = REPRODUCED) -> str:
    """A line for each figure or curve that a paper prints: the settings that meet it, in part, and not at all. A point is met
    where our interval over seeds (with fewer than five their range, of one seed its value) holds it. Layer 0 is the input."""
    lines = ["| study | printed | as | met by | in part by | not met by |", "|---|---|---|---|---|---|"]
    for curve in curves(folder):
        groups: dict[str, list[str]] = {"met": [], "in part": [], "below": [], "above": [], "above and below": []}
        for setting, points in curve.settings.items():
            sides = [side for _, side in points]
            count = sides.count("met")
            name = setting or "ours"
            if 0 < count < len(sides):
                groups["in part"].append(f"{name} ({count} of {len(sides)})")
            else:
                groups[" and ".join(sorted({*sides}))].append(name)
        printed = " … ".join(dict.fromkeys((curve.printed[0], curve.printed[-1])))
        missed = ". ".join(f"Ours {where}: {'; '.join(names)}" for where, names in [*groups.items()][2:] if names)
        cells = (_cell(text) or "none" for text in ("; ".join(groups["met"]), "; ".join(groups["in part"]), missed))
        lines.append(f"| `{curve.study}` | {_cell(curve.name)} | {_cell(printed)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def curves(folder: pathlib.Path = REPRODUCED) -> list[Curve]:
    """The printed figures: rows of one quantity and setting are a curve by layer, settings with the same printed figures stand
    together."""
    found: dict[Any, Curve] = {}
    for _, content in _studies(folder):
        own: dict[tuple[str, str], list[Point]] = {}
        for row in content["table"]:
            beside, layer = side(row.get("paper"), row.get("ours")), LAYER.search(row["quantity"])
            if not beside or (layer and layer["layer"] == "0" and "–" not in layer[0]):
                continue
            name, setting = _parts(row["quantity"])
            if content["study"] in ("readings", "paper-size") and row["note"]:
                setting = row["note"]
            own.setdefault((name, setting), []).append((row["paper"], beside))
        for (name, setting), points in own.items():
            key = content["study"], name, tuple(paper for paper, _ in points)
            found.setdefault(key, Curve(content["study"], name, {})).settings[setting] = points
    return list(found.values())


def _parts(quantity: str) -> tuple[str, str]:
    """What a row is of, and its setting; the layer is left out of both."""
    text = re.sub(r"^(same|adjacent) layers? [\d–]+", r"\1 layers", quantity)
    name, _, setting = LAYER.sub("", text).removesuffix(", ").partition(", ")
    return name, setting


def side(paper: str | None, ours: Mapping[str, Any] | None) -> str:
    """Where ours lies beside a printed number, a bound, a range a … b or "about" a number; nothing where there is none of these.
    Of one seed its value counts."""
    ends = _ends(re.sub(r" \(.*\)$", "", paper or ""))
    if ends is None or not ours or ours["mean"] is None:
        return ""
    low, high = (ours["mean"] if ours[end] is None else ours[end] for end in ("low", "high"))
    return "below" if high < ends[0] else "above" if low > ends[1] else "met"


def _ends(text: str) -> tuple[float, float] | None:
    """From where to where ours meets what is printed: a number to half of its last digit, "about" a number to half an order."""
    if between := re.fullmatch(f"({NUMBER}) … ({NUMBER.replace('digits', 'more')})", text):
        return float(between[1]), float(between[3])
    found = re.fullmatch(f"(?P<word>[<>≥≤]|about|up to)? ?(?P<number>{NUMBER})", text)
    if found is None:
        return None
    word, number = found["word"], float(found["number"])
    half = 0.0 if "e" in text.removeprefix("about") else 0.5 * 10.0 ** -len(found["digits"] or "")
    if word == "about":
        return number / ABOUT, number * ABOUT
    return (
        -math.inf if word in ("<", "≤", "up to") else number - half,
        math.inf if word in (">", "≥") else number + half,
    )


def axes(folder: pathlib.Path = REPRODUCED) -> str:
    """Which steps and scales of the embedding each study goes through, and whether its networks are trained."""
    lines = ["| study | steps h of a layer | embedding | networks |", "|---|---|---|---|"]
    both, neither = [], []
    for path, content in _studies(folder):
        data = path / str(content.get("data"))
        if not data.is_file():
            continue
        with xr.open_dataset(data, engine="scipy") as kept:
            found = {str(name): [str(x) for x in kept[name].values] for name in kept.coords}
        steps, many = _steps(content["study"], found)
        config = content.get("config") or {}
        if (content.get("pairing") or "").startswith("untrained") or not (config.get("train") or config.get("student")):
            state = "untrained"
        else:
            state = "before and after training" if content["study"] == "residual" else "trained"
        scales = list(dict.fromkeys(found.get("scale", []))) if "√d" in found.get("scale", []) else []
        cells = steps, "; ".join(f"× {scale}" for scale in scales) or "as drawn", state
        lines.append(f"| `{content['study']}` | {' | '.join(map(_cell, cells))} |")
        (both if many and scales else neither if not many and not scales else []).append(f"`{content['study']}`")
    if len(lines) == 2:
        return ""
    said = f"Both axes are gone through by {', '.join(both) or 'none'}; neither by {', '.join(neither) or 'none'}."
    return "\n".join([*lines, f"\n{said}\n"])


def _steps(study: str, coordinates: Mapping[str, list[str]]) -> tuple[str, bool]:
    """The steps of a study, from its coordinates, and whether they are several of one field."""
    if "steps_per_layer" in coordinates:
        return ", ".join("1" if n == "1" else f"1/{n}" for n in coordinates["steps_per_layer"]), True
    if study in ("readings", "paper-size", "alignment-step"):
        found = coordinates["width" if study == "paper-size" else "step"]
        return ", ".join(f"{float(x):g}" for x in found), len(found) > 1
    if study in ("residual", "layernorm"):
        return "; ".join(dict.fromkeys(coordinates["step"])), True
    if study == "continuum":
        return f"{', '.join(f'{float(x):g}' for x in coordinates['steps'])} steps of the whole depth", True
    shared = any(name.startswith("shared") for name in coordinates.get("pairing", [])) or study == "architectures"
    return "1 (shared: 1/4)" if shared else "by kind of field" if study == "distillation" else "1", False
