"""Numbers, figures, times and environments as every table, page and line shows them."""

import math
from typing import Any


def number(value: float | int | None) -> str:
    """Write a number to four significant digits; whole numbers below a million as they are.

    >>> number(0.98765), number(12345.0), number(1234567.0), number(None)
    ('0.9877', '12345', '1.235e6', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else str(value)
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:.{max(3 - exponent, 0)}f}" if -4 <= exponent < 6 else _power(value, 3)


def parts(figure: Any) -> tuple[str, str]:
    """Write a figure and its interval, `("0.9870", "[0.9810, 0.9930]")`, to two digits of the half width.

    `figure` has `value`, `low` and `high`, or is a number, a text or None; without an interval the second text is empty.
    """
    if not hasattr(figure, "low"):
        return text(figure), ""
    value, low, high = (float(x) for x in (figure.value, figure.low, figure.high))
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return number(value), ""
    largest = max(abs(value), abs(low), abs(high))
    half = abs(high - low) / 2
    if half == 0 or not math.isfinite(half) or half < 1e-9 * largest:
        return number(value), f"[{number(low)}, {number(high)}]"
    decimals, exponent = 1 - math.floor(math.log10(half)), math.floor(math.log10(largest))
    if -4 <= exponent < 6:
        value, low, high = (_fixed(x, max(decimals, 0)) for x in (value, low, high))
    else:
        value, low, high = (_power(x, max(decimals + exponent, 0), exponent) for x in (value, low, high))
    return value, f"[{low}, {high}]"


def shown(figure: Any) -> str:
    """Write a figure with its interval, a number, a text or None in a line."""
    return " ".join(part for part in parts(figure) if part)


def text(value: Any) -> str:
    """Write a number as `number` does, text as it is, and a dash for None."""
    value = value.item() if hasattr(value, "item") else value  # of NumPy
    if isinstance(value, bool) or not (isinstance(value, int | float) or value is None):
        return str(value)
    return number(value)


def seconds(value: object) -> str:
    """Write a time: `0.42 s`, `35 s`, `12.3 min`, `1.5 h`; nothing for what is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return ""
    if value < 60:
        return f"{value:.2g} s" if value < 9.5 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def code(found: object) -> str:
    """Write which code measured in a line: the commit and the library's digest by their first digits."""
    if not isinstance(found, dict) or not found.get("library"):
        return "code not recorded"
    libraries = ", ".join(each if " " in each else each[:12] for each in str(found["library"]).split(", "))
    commit, *edited = str(found.get("commit") or "").split()[:2] or [""]
    return " ".join([f"library {libraries}", *([f"of commit {commit[:12]}", *edited] if commit else [])])


def environment(found: object) -> str:
    """Write device, precision and versions in a line."""
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
