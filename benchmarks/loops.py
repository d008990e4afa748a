"""Looped Transformers over seeds: pre-, post- and peri-norm, with injection and without, trained and studied anew.

    python benchmarks/loops.py --jobs 2 --out benchmarks/results/loops    # an hour on two cores; goes on after a stop

Every model is trained by `pdejax train` on short ListOps and studied by `pdejax loops`, once per seed, into a folder of its own
under --work; --jobs of them at a time. Writes seeds.json, again after every seed: what each seed's study found, figure by
figure, and their means with intervals over seeds.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import pathlib
import sys
from typing import Any

import numpy as np

MODELS = {
    "pre": ["--norm", "pre", "--options", "loops=6"],
    "post": ["--norm", "post", "--options", "loops=6"],
    "peri": ["--norm", "peri", "--options", "loops=6"],
    "injected": ["--norm", "pre", "--options", "loops=6", "injection=add"],
    "injected-post": ["--norm", "post", "--options", "loops=6", "injection=add"],
}
DATA = ["min_length=5", "max_length=20", "sizes=(48000,2000,2000)"]
HOW = ["--optimizer", "adamw", "--schedule", "cosine", "--warmup", "200", "--weight-decay", "0.01", "--clip", "1.0"]
SETTINGS = ("seeds", "dim", "steps", "sequences", "loops", "derivatives")
SHARES = ("share", "accuracy", "test accuracy")  # from 0 to 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for the result")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("out/loops"), help="for networks and studies")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="which of them")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each, from 0")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, each in a process of its own")
    parser.add_argument("--dim", type=int, default=32, help="features; the feed-forward network has four times as many")
    parser.add_argument("--steps", type=int, default=1000, help="steps of training")
    parser.add_argument("--sequences", type=int, default=20, help="inputs of a study")
    parser.add_argument("--loops", type=int, default=96, help="passes that are followed")
    parser.add_argument("--derivatives", type=int, default=1, help="inputs whose sub-layers are measured")
    given = parser.parse_args(arguments)
    from pdejax.runs import environment
    from pdejax.runs._files import write_json

    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {model: [] for model in given.models}
    order: list[tuple[int, str]] = [(seed, model) for seed in range(given.seeds) for model in given.models]
    # In fresh processes: a thread of XLA does not outlive a fork, and memory goes back after every network.
    alone = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(given.jobs, alone, max_tasks_per_child=1) as pool:
        for (_, model), run in zip(order, pool.map(functools.partial(studied, given), order), strict=True):
            found[model].append(run)
            if model == given.models[-1]:
                write_json(given.out / "seeds.json", summary(given, found) | {"environment": environment()})
    return 0


def summary(given: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is known after so many seeds of every model."""
    settings = {name: getattr(given, name) for name in SETTINGS} | {"seeds": len(found[given.models[0]])}
    return {
        "models": {model: {"seeds": list(runs), "over seeds": over(runs)} for model, runs in found.items()},
        "settings": settings,
    }


def studied(given: argparse.Namespace, which: tuple[int, str]) -> dict[str, Any]:
    """One network trained and studied, or read where it was already."""
    from pdejax.cli import main as run

    seed, model = which
    network, study = given.work / "networks" / f"{model}-{seed}", given.work / "studies" / f"{model}-{seed}"
    sizes = ["--dim", given.dim, "--ffn", 4 * given.dim, "--layers", 1]
    train = ["train", "listops", "--data", *DATA, *sizes, *HOW, "--steps", given.steps, *MODELS[model]]
    loops = ["loops", network, "--sequences", given.sequences, "--loops", given.loops]
    loops += ["--derivatives", given.derivatives, "--seed", seed, "--out", study]
    for command, done in (([*train, "--seed", seed, "--out", network], network), (loops, study)):
        if not (done / "result.json").exists() and run(list(map(str, command))) not in (0, 1):
            raise SystemExit(f"pdejax {' '.join(map(str, command))} failed")
    trained, found = (json.loads((folder / "result.json").read_text()) for folder in (network, study))
    figures = {row["quantity"]: row["ours"] for row in found["table"]}
    values = {
        name: ours.get("value", ours.get("mean")) if isinstance(ours, dict) else ours for name, ours in figures.items()
    }
    kinds = found["results"]["kinds"]
    # Of kinds that no input is of the study has no row.
    shares = {f"share of inputs: {kind}": count / sum(kinds.values()) for kind, count in kinds.items()}
    return {
        "seed": seed,
        "accuracy": trained["test"]["accuracy"],
        "baselines": trained["baselines"],
        "kinds": kinds,
        "followed to its end": found["results"]["safe range"]["censored"],
        "same point": found["results"].get("fixed points", {}).get("the same", 0),
        "verdict": found["verdict"],
        "values": shares | {name: value for name, value in values.items() if isinstance(value, int | float)},
    }


def over(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with their intervals, of the figures that every seed has."""
    from pdejax._bootstrap import over_seeds

    names = [name for name in runs[0]["values"] if all(name in run["values"] for run in runs)]
    columns = {"test accuracy": [run["accuracy"] for run in runs]}
    columns |= {name: [run["values"][name] for run in runs] for name in names}
    found = {}
    for name, values in columns.items():
        x = over_seeds(np.asarray(values, float), within=(0, 1) if name.startswith(SHARES) else None)
        found[name] = {"value": float(x), "low": float(np.asarray(x.low)), "high": float(np.asarray(x.high))}
    return found


if __name__ == "__main__":
    sys.exit(main())
