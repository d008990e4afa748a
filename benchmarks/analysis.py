"""What the analyses cost: against scikit-learn and NumPy, Lyapunov exponents against the forward solve, and memory.

    python benchmarks/analysis.py [--out DIR] [--repeats K]

Every figure is a ratio within this run: both sides are called in turn, after compilation, and medians and minima are kept with
all times. Results go to analysis.json.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from analysis_dynamics import jacobian_large, lyapunov_ratio  # pyright: ignore[reportMissingImports]
from analysis_information import cases as information  # pyright: ignore[reportMissingImports]
from analysis_similarity import cases as similarity  # pyright: ignore[reportMissingImports]

from pdejax.runs._files import write_json
from pdejax.runs._parts import environment

MEMORY = """
import json, os, sys, threading, time
import jax, jax.numpy as jnp
from pdejax import analysis
from pdejax.analysis import information
name, layers, b, n, d = sys.argv[1], *map(int, sys.argv[2:])
key = jax.random.key(0)
states = jax.block_until_ready(jax.random.normal(key, (layers, b, n, d)))
other = jax.block_until_ready(states + 0.1)
calls = {
    "trajectory_fidelity": lambda u, v: analysis.trajectory_fidelity(u, v, key=key, resamples=100),
    "input_correlation": lambda u, v: analysis.layer_correlation(u, key=key, resamples=100),
    "spectral_similarity": lambda u, v: analysis.spectral_similarity(u, v, key=key, resamples=100),
    "amplitude_spectrum": lambda u, v: analysis.amplitude_spectrum(u, key=key, resamples=100),
    "token_clustering": lambda u, v: analysis.token_clustering(u, key=key, resamples=100),
    "representation": lambda u, v: analysis.representation(u, key=key, resamples=100),
}
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
# Compiled before, so that only the arrays of the second call count; the peak is that of looks every millisecond.
jax.block_until_ready(calls[name](states, other))
before, seen, done = resident(), [], threading.Event()
def look():
    while not done.is_set():
        seen.append(resident())
        time.sleep(0.001)
watch = threading.Thread(target=look)
watch.start()
jax.block_until_ready(calls[name](states, other))
done.set()
watch.join()
print(json.dumps({"trajectory": states.nbytes, "added": max(seen) - before}))
"""


def main() -> int:
    """Run everything; 0, or 1 where a figure of ours and its reference do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), metavar="DIR")
    parser.add_argument("--repeats", type=int, default=7, metavar="K", help="calls of each side (default 7)")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    found, wrong = {}, []
    for name, ours, reference, tolerance in [*similarity(), *information()]:
        row, agrees = beside(ours, reference, tolerance, options.repeats)
        found[name] = row
        print(f"{name:<32} ours {row['ours_median']:.4f} s, reference {row['reference_median']:.4f} s, "
              f"reference/ours {row['ratio_median']:.2f} (median), {row['ratio_min']:.2f} (minima)", flush=True)  # fmt: skip
        wrong += [] if agrees else [name]
    dynamics = {"lyapunov": lyapunov_ratio(repeats=min(options.repeats, 5)), "jacobian": jacobian_large()}
    print(
        f"Lyapunov, 4 exponents, N = 256, d = 128: {dynamics['lyapunov']['ratio_median']:.1f} forward solves per exponent"
    )
    print(f"layer Jacobian of {dynamics['jacobian']['entries']:,} entries: {dynamics['jacobian']['seconds']:.1f} s")
    space = memory()
    for name, row in space.items():
        print(f"{name:<32} {row['ratio']:.1f} × the trajectory of {row['trajectory'] / 2**20:.0f} MiB", flush=True)
    result = {"environment": environment(), "speed": found, "dynamics": dynamics, "memory": space, "disagree": wrong}
    write_json(options.out / "analysis.json", result)
    print(f"saved {options.out / 'analysis.json'}")
    for name in wrong:
        print(f"{name}: our figure is NOT that of the reference", file=sys.stderr)
    return 1 if wrong else 0


def beside(ours, reference, tolerance: float, repeats: int) -> tuple[dict, bool]:
    """Times of both, in turn, and whether their values agree."""
    import numpy as np

    agrees = bool(np.allclose(np.asarray(ours()), np.asarray(reference()), atol=tolerance, rtol=0))
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(repeats):
        for name, call in (("ours", ours), ("reference", reference)):
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    row = {f"{name}_median": statistics.median(values) for name, values in times.items()}
    row |= {f"{name}_min": min(values) for name, values in times.items()}
    row["ratio_median"] = row["reference_median"] / row["ours_median"]
    row["ratio_min"] = row["reference_min"] / row["ours_min"]
    return row | {"times": times, "agree": agrees}, agrees


def memory(layers: int = 13, b: int = 64, n: int = 256, d: int = 128) -> dict:
    """What each analysis adds to resident memory at its peak, over the trajectory's size, in its own process (Linux)."""
    found = {}
    for name in (
        "trajectory_fidelity",
        "input_correlation",
        "spectral_similarity",
        "amplitude_spectrum",
        "token_clustering",
        "representation",
    ):
        sizes = [str(x) for x in (layers, b, n, d)]
        done = subprocess.run([sys.executable, "-c", MEMORY, name, *sizes], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        found[name] = row | {"ratio": row["added"] / row["trajectory"], "shape": [layers, b, n, d]}
    return found


if __name__ == "__main__":
    sys.exit(main())
