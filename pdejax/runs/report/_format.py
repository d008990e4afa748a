"""Links, anchors and verdicts as the HTML page and the Markdown both have them."""

import os
import pathlib
import re
import urllib.parse


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
