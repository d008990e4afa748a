"""Errors of information estimators on channels whose information is known.

    python benchmarks/calibration.py --out benchmarks/results    # about two minutes on two cores

Prints the table and writes calibration.json (and calibration.png) to the folder.
"""

import argparse
import pathlib
import sys
import time

import jax


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for the results")
    parser.add_argument("--samples", type=int, default=1000, help="pairs of each channel")
    parser.add_argument("--seeds", type=int, default=5, help="draws of each channel")
    given = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    from matplotlib.figure import Figure

    from pdejax import plot
    from pdejax.analysis.information.channels._channels import calibration

    start = time.perf_counter()
    found = calibration(samples=given.samples, seeds=given.seeds)
    given.out.mkdir(parents=True, exist_ok=True)
    found.save(given.out / "calibration.json")
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    plot.plot(found, ax=figure.subplots())
    figure.savefig(given.out / "calibration.png", dpi=150)
    print(found.table())
    print(f"\n{given.samples} pairs, {given.seeds} draws, {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
