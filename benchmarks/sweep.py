"""A sweep of 10⁵ runs that is killed ten times on the way, beside the same sweep left alone; on devices and processes more.

    python benchmarks/sweep.py --sweeps killed --out benchmarks/results/sweep    # what is kept; goes on after a stop
    python benchmarks/sweep.py --sweeps devices processes --out benchmarks/results/sweep

Every sweep is `pdejax sweep` in a process of its own: once undisturbed; once killed by SIGKILL at random moments and started
again; once on eight virtual devices of this machine's processor; once as two processes that share a folder. Stores are compared
file by file. Writes resume.json, or without kills devices.json: what differs, which chunks were lost or kept twice, runs per
second, bytes.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import time
from typing import Any

SWEEPS = ("undisturbed", "killed", "devices", "processes")
LATER = 3.0  # seconds at most between a chunk that is drawn and the kill


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for the result")
    parser.add_argument(
        "--work", type=pathlib.Path, default=pathlib.Path("out/sweeps"), help="for the sweeps; goes on there"
    )
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS[1:], default=list(SWEEPS[1:]), help="beside the first")
    parser.add_argument("--betas", type=int, default=32, help="inverse temperatures of the diagram")
    parser.add_argument("--seeds", type=int, default=348, help="runs per point")
    parser.add_argument("--kills", type=int, default=10, help="how often the second sweep is killed")
    parser.add_argument("--devices", type=int, default=8, help="virtual devices of the third")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is killed")
    given = parser.parse_args(arguments)
    from pdejax.runs import environment
    from pdejax.runs._files import write_json

    given.work.mkdir(parents=True, exist_ok=True)
    whole: dict[str, Any] = {}
    for name in (SWEEPS[0], *given.sweeps):
        kept = given.work / f"{name}.json"
        if not kept.exists():
            write_json(kept, measured(given, name, whole))
        whole[name] = json.loads(kept.read_text())
        print(f"{name}: {whole[name]}", flush=True)
    found = compare(given, whole)
    found["environment"] = environment()
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / ("resume.json" if "killed" in whole else "devices.json"), found)
    return 0 if found["identical"] else 1


def measured(given: argparse.Namespace, name: str, whole: dict[str, Any]) -> dict[str, Any]:
    """One of the sweeps, run to its end."""
    folder = given.work / name
    if name == "killed":
        log, seen = kills(given, folder, whole["undisturbed"]["chunks"])
        last = finished(given, folder)
        return last | {"kills": log} | twice(folder, seen, whole["undisturbed"]["chunks"])
    more = {"devices": {"devices": given.devices}, "processes": {"processes": 2}}
    return finished(given, folder, **more.get(name, {}))


def compare(given: argparse.Namespace, whole: dict[str, Any]) -> dict[str, Any]:
    """What differs between the sweeps."""
    alone = given.work / "undisturbed"
    reference = files(alone)
    for name, sweep in whole.items():
        sweep["differing_files"], sweep["more_files"] = apart(reference, given.work / name)
        sweep["runs"] = sum(mark["runs"] for mark in marks(given.work / name).values())
    wanted = given.betas * 3 * 3 * given.seeds
    found = {
        "runs": wanted,
        "chunks": whole["undisturbed"]["chunks"],
        "sweeps": whole,
        "files": len(reference),
        "bytes": sum(path.stat().st_size for path in (alone / "sweep.zarr").rglob("*") if path.is_file()),
        "seed": given.seed,
        "key": json.loads((alone / "manifest.json").read_text())["key"],
        "identical": all(
            sweep["runs"] == wanted
            and not any(sweep.get(name, 0) for name in ("differing_files", "more_files", "rewritten", "lost"))
            for sweep in whole.values()
        ),
    }
    if "devices" in whole:
        rates = {name: wanted / whole[name]["processor_seconds"] for name in ("devices", "undisturbed")}
        share = rates["devices"] / rates["undisturbed"]
        found |= {"devices": given.devices, "rate_of_devices_to_one": share}
    return found


def start(given: argparse.Namespace, folder: pathlib.Path, devices: int = 1, **more: str) -> subprocess.Popen:
    """`pdejax sweep` in a process of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "pdejax", "sweep", "--betas", given.betas, "--seeds", given.seeds, "--out", folder]
    return subprocess.Popen(
        list(map(str, command)), env=os.environ | {"XLA_FLAGS": flags} | more, stdout=subprocess.DEVNULL
    )


def finished(given: argparse.Namespace, folder: pathlib.Path, devices: int = 1, processes: int = 1) -> dict[str, Any]:
    """A sweep run to its end, or the rest of one: seconds, those of the processor, and runs per second of its chunks."""
    before, began, cpu = len(marks(folder)), time.perf_counter(), _processor()
    shares = (
        [{}] if processes == 1 else [{"JAX_PROCESS_ID": str(i), "JAX_NUM_PROCESSES": str(processes)} for i in range(2)]
    )
    for process in [start(given, folder, devices, **share) for share in shares]:
        if process.wait():
            raise SystemExit(f"the sweep in {folder} ended with {process.returncode}")
    found = marks(folder)
    measuring = sum(mark["seconds"] for mark in found.values()) / processes
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": _processor() - cpu,
        "chunks": len(found),
        "chunks_here": len(found) - before,
        "measuring_seconds": measuring,
        "runs_per_second": sum(mark["runs"] for mark in found.values()) / measuring,
    }


def kills(given: argparse.Namespace, folder: pathlib.Path, chunks: int) -> tuple[list[dict[str, Any]], dict[int, Any]]:
    """A sweep that is killed at random moments, and the marks that were there at the first kill after each was made."""
    from pdejax.runs._files import write_json

    draw = random.Random(given.seed)
    moments = [(chunk, draw.uniform(0, LATER)) for chunk in sorted(draw.sample(range(1, chunks), given.kills))]
    kept = given.work / "kills.json"  # written after every kill, so that a stop loses none of them
    log, seen = json.loads(kept.read_text()) if kept.exists() else ([], {})
    seen = {int(number): tuple(stamp) for number, stamp in dict(seen).items()}
    for chunk, later in moments[len(log) :]:
        began, process = time.perf_counter(), start(given, folder)
        while process.poll() is None and len(list((folder / "done").glob("*.json"))) < chunk:
            time.sleep(0.2)
        time.sleep(later)
        process.kill()
        status = process.wait()
        seen |= {number: _stamp(folder, number) for number in marks(folder) if number not in seen}
        log.append({"after_seconds": time.perf_counter() - began, "status": status, "chunks": len(seen)})
        write_json(kept, [log, {str(number): stamp for number, stamp in seen.items()}])
        print(f"killed after {log[-1]['after_seconds']:.1f} s ({status}): {len(seen)} chunks", flush=True)
    return log, seen


def twice(folder: pathlib.Path, seen: dict[int, Any], chunks: int) -> dict[str, int]:
    """Marks that were there at a kill and were written again since, and chunks without one at the end."""
    there = marks(folder)
    rewritten = sum(number in there and _stamp(folder, number) != stamp for number, stamp in seen.items())
    return {"rewritten": rewritten, "lost": sum(number not in there for number in range(chunks))}


def marks(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
    """The marks of whole chunks, by their number."""
    return {int(path.stem): json.loads(path.read_text()) for path in sorted((folder / "done").glob("*.json"))}


def files(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file of the store; what a killed process left half written has another name."""
    store = folder / "sweep.zarr"
    found = (path for path in sorted(store.rglob("*")) if path.is_file() and ".partial" not in path.name)
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def apart(reference: dict[str, str], folder: pathlib.Path) -> tuple[int, int]:
    """How many files of a store are other than those of the reference, or not there, and how many more there are."""
    found = files(folder)
    return sum(found.get(path) != sha for path, sha in reference.items()), len(found.keys() - reference.keys())


def _stamp(folder: pathlib.Path, number: int) -> tuple[int, str]:
    path = folder / "done" / f"{number}.json"
    return path.stat().st_mtime_ns, path.read_text()


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
