"""Parallel in depth: iterations predicted and needed, steps that follow one another, and the bias of gradients stopped early.

    python benchmarks/parallel.py [--out DIR] [--steps N] [--seeds K]

Fields with smooth weights, from contracting to strong ones, beside layers drawn independently: N steps of explicit Euler over
[0, 4] in float64. Counts, not seconds: what a machine with one device per chunk would wait for. Results go to parallel.json.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import pdejax as pj
from pdejax.analysis.parallel import gradient_bias, predict_iterations
from pdejax.runs._files import write_json
from pdejax.runs._parts import environment
from pdejax.solvers.parallel import critical_path

TOKENS, DIM, DEPTH = 8, 4, 4.0
# Strength of attention and feed-forward, and the rate of damping.
FIELDS = {"contracting": (0.3, 1.0), "damped": (0.6, 0.6), "weakly expanding": (0.6, 0.0), "strong": (2.0, 0.5)}
METHODS = {
    "parareal": {"method": "parareal", "coarsening": 16},
    "MGRIT": {"method": "mgrit", "coarsening": 16},
    "MGRIT, 4 levels": {"method": "mgrit", "coarsening": 4, "levels": 4},
    "Newton": {"method": "newton", "coarsening": 16},
}


def layer(key, strength: float, damping: float) -> pj.MasterEquation:
    a, b = jax.random.split(key)
    return pj.MasterEquation(
        pj.Attention(DIM, 1, key=a, strength=strength),
        pj.FeedForward(DIM, 2 * DIM, key=b, activation="tanh", strength=strength),
        pj.LinearDamping(damping),
    )


def field(kind: str, seed: int, steps: int):
    key, other = jax.random.split(jax.random.key(seed))
    if kind == "independent layers":
        layers = [layer(k, 1.0, 0.0) for k in jax.random.split(key, steps)]
        return pj.DepthVarying.from_layers(layers, DEPTH)
    return pj.smooth_random(layer(key, *FIELDS[kind]), DEPTH, key=other)


def measured(d: pj.Discretization, u0, tolerance: float) -> list[dict]:
    rows = []
    for name, how in METHODS.items():
        found = pj.simulate_in_parallel(d, u0, tolerance=tolerance, **how)
        row = {"method": name, "iterations": int(found.iterations), "residual": float(found.residual)}
        row["converged"] = bool(found.converged)
        if how.get("levels", 2) == 2:
            predicted = predict_iterations(d, u0, tolerance=tolerance, **how)
            row |= {"predicted": int(predicted.iterations), "pays": bool(predicted.pays)}
        if how["method"] != "newton":
            relaxation = "F" if how["method"] == "parareal" else "FCF"
            row["path"] = critical_path(
                d.steps,
                iterations=row["iterations"],
                coarsening=how["coarsening"],
                levels=how.get("levels", 2),
                relaxation=relaxation,
            )
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), metavar="DIR")
    parser.add_argument("--steps", type=int, default=256, metavar="N", help="a multiple of 64 (default 256)")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="fields of each kind (default 3)")
    options = parser.parse_args()
    if options.steps < 64 or options.steps % 64:
        parser.error(f"--steps {options.steps}: give a multiple of 64")
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: give at least 1")
    jax.config.update("jax_enable_x64", True)
    rows = []
    for kind in (*FIELDS, "independent layers"):
        for seed in range(options.seeds):
            u0 = jax.random.normal(jax.random.key(100 + seed), (TOKENS, DIM))
            d = pj.Discretization(field(kind, seed, options.steps), "euler", t1=DEPTH, steps=options.steps)
            exponent = float(np.asarray(pj.analysis.lyapunov_exponents(d, u0, k=1).exponents.value)[0])
            for tolerance in (1e-3, 1e-8):
                for row in measured(d, u0, tolerance):
                    rows.append({"field": kind, "seed": seed, "exponent": exponent, "tolerance": tolerance} | row)
            print(f"{kind}, seed {seed}: exponent {exponent:.2f}, iterations to 1e-8 "
                  + ", ".join(f"{r['method']} {r['iterations']}" for r in rows[-len(METHODS):]), flush=True)  # fmt: skip
    d = pj.Discretization(field("damped", 0, options.steps), "euler", t1=DEPTH, steps=options.steps)
    u0 = jax.random.normal(jax.random.key(100), (TOKENS, DIM))
    bias = gradient_bias(d, u0, loss=lambda u: jnp.sum(u**2), iterations=(0, 1, 2, 3), coarsening=16)
    saved = {name: np.asarray(getattr(bias, name)).tolist() for name in ("iterations", "bias", "estimate", "cosine")}
    results = {"steps": options.steps, "tokens": TOKENS, "dim": DIM, "depth": DEPTH, "rows": rows, "gradient": saved}
    path = options.out / "parallel.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"results": results, "environment": environment()})
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
