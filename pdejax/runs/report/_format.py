"""Numbers, links and names as the HTML page and the Markdown both show them."""

import math
import os
import pathlib
import re
import urllib.parse

from pdejax.runs.report._read import Cell


def number(value: float | None) -> str:
    """A number to four significant digits; whole numbers below a million as they are.

    >>> number(0.98765), number(12345.0), number(1234567.0), number(None)
    ('0.9877', '12345', '1.235e6', '–')
    """
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:.{max(3 - exponent, 0)}f}" if -4 <= exponent < 6 else _power(value, 3)


def interval(figure: Cell) -> tuple[str, str]:
    """Mean and interval, `("0.9870", "[0.9810, 0.9930]")`, all to two digits of the half width; no interval, no second text."""
    if figure.mean is None:
        return figure.text or "–", ""
    if figure.low is None or figure.high is None:
        return number(figure.mean), ""
    largest = max(abs(figure.mean), abs(figure.low), abs(figure.high))
    half = abs(figure.high - figure.low) / 2
    if half == 0 or not math.isfinite(half) or half < 1e-9 * largest:
        return number(figure.mean), f"[{number(figure.low)}, {number(figure.high)}]"
    decimals, exponent = 1 - math.floor(math.log10(half)), math.floor(math.log10(largest))
    if -4 <= exponent < 6:
        mean, low, high = (_fixed(x, max(decimals, 0)) for x in (figure.mean, figure.low, figure.high))
    else:
        mean, low, high = (
            _power(x, max(decimals + exponent, 0), exponent) for x in (figure.mean, figure.low, figure.high)
        )
    return mean, f"[{low}, {high}]"


def cell(figure: Cell | None) -> str:
    """Mean and interval in a line; a dash where nothing was measured."""
    return "–" if figure is None else " ".join(part for part in interval(figure) if part)


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _power(value: float, decimals: int, exponent: int | None = None) -> str:
    if exponent is None:
        mantissa, power = f"{value:.{decimals}e}".split("e")
        return f"{mantissa}e{int(power)}"
    # In two steps: ten to a power beyond 308 is no float.
    scaled = value / 10.0 ** (exponent // 2) / 10.0 ** (exponent - exponent // 2)
    return f"{_fixed(scaled, decimals)}e{exponent}"


def seconds(value: object) -> str:
    """A time as text: `0.42 s`, `35 s`, `12.3 min`, `1.5 h`; nothing for what is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return ""
    if value < 60:
        return f"{value:.2g} s" if value < 9.5 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def link(path: pathlib.Path, base: pathlib.Path) -> str:
    """The address of `path` for a page that lies in the folder `base`."""
    relative = pathlib.PurePath(os.path.relpath(path, base)).as_posix()
    # A leading name with a colon would read as a scheme.
    return urllib.parse.quote(os.fsencode(relative if relative.startswith(".") else f"./{relative}"), safe="/.")


def slug(text: str, taken: set[str]) -> str:
    """A name for an anchor: letters, digits and hyphens, and none of `taken`, which gains it."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
    found, count = plain, 1
    while found in taken:
        count += 1
        found = f"{plain}-{count}"
    taken.add(found)
    return found


def standing(verdict: str) -> str:
    """`holds`, `condition` or `fails` from the first words of a verdict, `open` for any other."""
    words = re.sub(r"[^a-z ]", " ", verdict.lower()).split()
    if words[:1] == ["holds"]:
        return "condition" if len(words) > 1 else "holds"
    return "fails" if words[:1] in (["fails"], ["fail"]) else "open"


def environment(found: object) -> str:
    """Device, precision and versions in a line."""
    if not isinstance(found, dict):
        return ""
    versions = found.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    parts = [str(found.get("device") or found.get("backend") or "")]
    if found.get("cores"):
        parts.append(f"{found['cores']} cores")
    if "x64" in found:
        parts.append("float64" if found["x64"] else "float32")
    parts += [f"{name} {versions[name]}" for name in ("pdejax", "jax", "flax", "diffrax") if _known(versions.get(name))]
    return ", ".join(part for part in parts if part)


def _known(version: object) -> bool:
    return isinstance(version, str) and version not in ("", "not installed")
