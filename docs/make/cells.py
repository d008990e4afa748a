"""Programs run cell by cell: what each cell prints and draws, kept by content so that only what changed runs again.

A page's cells are its fences marked `python run`; an example's are what `# %%` lines part. All cells of a program share one
process and one namespace. `python cells.py PROGRAM.json OUT` is that process.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "docs"
FENCE = re.compile(r"^```python run *\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def cells_of(markdown: str) -> list[str]:
    """The code of a page that is run."""
    return FENCE.findall(markdown)


def run_all(programs: Mapping[str, Sequence[str]], processes: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Run programs, name -> cells; returns name -> for each cell its `text` and its `pictures`, paths of PNG files."""
    library = _library()
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return dict(zip(programs, pool.map(lambda item: run(*item, library), programs.items()), strict=True))


def run(name: str, cells: Sequence[str], library: str = "") -> list[dict[str, Any]]:
    """Run one program, or read what it printed when this very program ran with this library."""
    key = hashlib.sha256(
        json.dumps([library, pathlib.Path(__file__).read_text(), name, list(cells)]).encode()
    ).hexdigest()[:20]
    kept = CACHE / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{key}"
    if not (kept / "cells.json").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = pathlib.Path(folder) / "made"
            made.mkdir()
            (made / "program.json").write_text(json.dumps({"name": name, "cells": list(cells)}))
            done = subprocess.run(
                [sys.executable, __file__, "program.json"],
                cwd=made,
                env=os.environ | _ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=600,
            )
            if done.returncode:
                raise RuntimeError(f"{name} does not run:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
            with contextlib.suppress(OSError):  # another build was faster
                os.rename(made, kept)
    outputs = json.loads((kept / "cells.json").read_text())
    return [{"text": cell["text"], "pictures": [kept / file for file in cell["pictures"]]} for cell in outputs]


# Compiling takes longer than computing: the tests' flags (tests/conftest.py), so that both read each other's compiled programs.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
# Programs see the checkout, no screen, and the compiled programs of earlier builds.
_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "MPLBACKEND": "Agg",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "COLUMNS": "88",
    "XLA_FLAGS": _QUICK,
}


def _library() -> str:
    """A digest of the library's own sources: what a page shows is what this version prints."""
    found = hashlib.sha256()
    for folder in ("pdejax", "solvers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def _execute(program: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run the cells in this process and this folder; pictures are the PNG files each leaves, and figures left open."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    out, seen, outputs = pathlib.Path("out"), set(), []
    sys.argv = [program["name"], "--out", str(out)]
    for number, cell in enumerate(program["cells"], start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell, f"{program['name']}, cell {number}", "exec"), namespace)
        if "matplotlib.pyplot" in sys.modules:
            from matplotlib import pyplot

            out.mkdir(exist_ok=True)
            for figure in pyplot.get_fignums():
                pyplot.figure(figure).savefig(out / f"figure-{number}-{figure}.png", dpi=120, bbox_inches="tight")
            pyplot.close("all")
        files = {path for path in (*pathlib.Path().glob("*.png"), *out.glob("*.png"))}
        outputs.append({"text": printed.getvalue(), "pictures": sorted(map(str, files - seen))})
        seen |= files
    return outputs


if __name__ == "__main__":
    found = _execute(json.loads(pathlib.Path(sys.argv[1]).read_text()))
    pathlib.Path("cells.json").write_text(json.dumps(found))
