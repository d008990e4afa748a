"""Speed and memory, always as ratios inside one run, interleaved.

    python benchmarks/speed.py --out out            # everything; the PyTorch part needs the extra `bench`
    python benchmarks/speed.py --only field solve   # some parts
    python benchmarks/speed.py --tokens 200 --rounds 3   # a small, quick run

Parts: `solve` (simulate against a hand-written scan and the jitted Flax Transformer), `field` (one evaluation against
this machine's matrix product rate and PyTorch's fused attention), `memory` (temporaries of attention), `compile`
(seconds per scheme, traces in a sweep of ten step sizes), `training` (a training step against plain Flax and optax, the
simulator's against the Transformer's), `adjoints` (memory of a gradient against steps), `torch` (whole solves and
gradients against torchdiffeq), `products` (each product of the field and of its gradient alone: the time below which no
gradient can come), `blocks` (attention by size of its blocks), `starts` (a command's second start).
Timings are minima and medians over rounds in which all candidates take turns.
"""

import argparse
import os
import pathlib
import sys
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import pdejax as pj
from pdejax.runs import environment
from pdejax.runs._files import check_folder, write_json

D, HEADS, FFN, LAYERS = 128, 4, 512, 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="folder for speed.json")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.out is not None:
        check_folder(options.out)
    results = {}
    for name in options.only:
        print(f"== {name}", flush=True)
        results[name] = PARTS[name](options.tokens, options.rounds)
        if options.out is not None:
            content = {
                "study": "speed",
                "config": {k: v for k, v in vars(options).items() if k != "out"} | {"dim": D},
                "environment": environment(),
                "results": results,
            }
            write_json(options.out / "speed.json", content)
    return 0


def equation_and_state(n: int, batch: int | None = None):
    """The benchmark's field: pre-LN attention and GELU feed-forward, residual, float32."""
    ka, kr, ku = jax.random.split(jax.random.key(0), 3)
    equation = pj.MasterEquation(
        interaction=pj.Attention(D, HEADS, norm=pj.LayerNorm(D), key=ka),
        reaction=pj.FeedForward(D, FFN, norm=pj.LayerNorm(D), key=kr),
    )
    return equation, jax.random.normal(ku, (n, D) if batch is None else (batch, n, D))


def take_turns(candidates: dict, rounds: int, quiet: bool = False) -> dict[str, dict[str, float]]:
    """Minimum and median seconds of every candidate; one call each, turn by turn, after two to warm up."""
    for call in candidates.values():
        for _ in range(2):
            call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    table = {
        name: {"min": min(t), "median": float(np.median(t)), "iqr": float(np.subtract(*np.percentile(t, [75, 25])))}
        for name, t in times.items()
    }
    if not quiet:
        for name, row in table.items():
            print(f"  {name:<34}{1e3 * row['min']:>10.2f} ms min{1e3 * row['median']:>10.2f} ms median", flush=True)
    return table


def ratio(table, name: str, other: str) -> dict[str, float]:
    """`name` over `other`, from minima and from medians."""
    return {kind: table[name][kind] / table[other][kind] for kind in ("min", "median")}


def blocked(function, *arguments):
    """A call that waits for its result."""
    return lambda: jax.block_until_ready(function(*arguments))


def solve(n: int, rounds: int) -> dict:
    """`simulate` with Euler against a hand-written scan, and the native scheme against the jitted Flax Transformer."""
    equation, u0 = equation_and_state(n)
    out = {}
    for steps in (6, 24, 96):

        @eqx.filter_jit
        def scan(equation, u, steps=steps):
            h = 6.0 / steps
            return jax.lax.scan(lambda v, k: (v + h * equation(h * k, v), None), u, jnp.arange(steps))[0]

        def simulate(steps=steps):
            return pj.simulate(pj.Discretization(equation, "euler", t1=6.0, steps=steps), u0).us

        jitted = eqx.filter_jit(
            lambda e, u, steps=steps: pj.simulate(pj.Discretization(e, "euler", t1=6.0, steps=steps), u).us
        )
        candidates = {
            f"euler {steps}: hand-written scan": blocked(scan, equation, u0),
            f"euler {steps}: simulate": blocked(simulate),
            f"euler {steps}: simulate inside jit": blocked(jitted, equation, u0),
        }
        few = max(3, rounds * 6 // steps)
        table = take_turns(candidates, few)
        names = list(candidates)
        out[f"euler {steps}"] = table | {
            "simulate / scan": ratio(table, names[1], names[0]),
            "simulate inside jit / scan": ratio(table, names[2], names[0]),
        }
        print(f"  simulate / scan = {out[f'euler {steps}']['simulate / scan']['min']:.3f}")
    config = pj.Architecture(vocab=16, dim=D, heads=HEADS, layers=LAYERS, ffn=FFN)
    model = pj.Transformer(config, rngs=nnx.Rngs(0))
    tokens = jnp.arange(n) % 16
    lifted, start, native = pj.lift(model).field, model.embed(tokens), pj.lift(model).solver
    candidates = {
        f"Flax Transformer, {LAYERS} layers": blocked(lambda: model.run(start)),
        "lift + native solver": blocked(
            lambda: pj.simulate(pj.Discretization(lifted, native, t1=lifted.t1, steps=LAYERS), start).us
        ),
    }
    table = take_turns(candidates, max(3, rounds // 2))
    out["transformer"] = table | {"simulate / Flax": ratio(table, *reversed(candidates))}
    print(f"  simulate / Flax = {out['transformer']['simulate / Flax']['min']:.3f}")
    return out


def field(n: int, rounds: int) -> dict:
    """One evaluation of the field as a share of the matrix product rate, and against PyTorch with fused attention."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(2048, 2048)), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    flops = 2 * n * (4 * D * D + 2 * D * FFN) + 4 * n * n * D
    out: dict = {"flops": flops}
    torch = _torch()
    for batch in (1, 4, 8):
        equation, u = equation_and_state(n, batch)
        evaluate = eqx.filter_jit(lambda e, v: jax.vmap(lambda w: e(0.0, w, None))(v))
        candidates = {
            "matrix product 2048": blocked(product, a),
            f"field, batch {batch}": blocked(evaluate, equation, u),
        }
        if torch is not None:
            candidates[f"PyTorch fused, batch {batch}"] = torch.evaluation(equation, u)
        table = take_turns(candidates, rounds)
        rate = 2 * 2048**3 / table["matrix product 2048"]["min"]
        share = batch * flops / table[f"field, batch {batch}"]["min"] / rate
        out[f"batch {batch}"] = table | {"share of matrix product rate": share}
        print(f"  share of the matrix product rate {share:.2f} ({rate / 1e9:.0f} Gflop/s)")
        if torch is not None:
            faster = ratio(table, f"PyTorch fused, batch {batch}", f"field, batch {batch}")
            out[f"batch {batch}"]["PyTorch / pdejax"] = faster
            print(f"  PyTorch / pdejax = {faster['min']:.2f} (min) {faster['median']:.2f} (median)")
    return out


def memory(n: int, rounds: int) -> dict:
    """Temporaries of attention and of its gradient, in MiB, from the compiled program."""
    del rounds
    out = {}
    for tokens in (n, 4 * n):
        x = jax.ShapeDtypeStruct((tokens, HEADS, D // HEADS), jnp.float32)
        for kind in ("dense", "blocked"):

            def forward(q, k, v, kind=kind):
                return pj.terms.attend(q, k, v, implementation=kind)

            gradient = jax.grad(lambda q, k, v, f=forward: jnp.sum(f(q, k, v) ** 2), argnums=(0, 1, 2))
            sizes = {}
            for name, function in (("forward", forward), ("gradient", gradient)):
                analysis = jax.jit(function).lower(x, x, x).compile().memory_analysis()
                assert analysis is not None
                sizes[name] = analysis.temp_size_in_bytes / 2**20
            out[f"N={tokens} {kind}"] = sizes
            print(
                f"  N = {tokens:<6}{kind:<9} forward {sizes['forward']:>8.1f} MiB   gradient {sizes['gradient']:>8.1f} MiB"
            )
    return out


def compile_times(n: int, rounds: int) -> dict:
    """Seconds to trace and compile each scheme, and the number of traces in a sweep of ten step sizes."""
    del rounds
    equation, u0 = equation_and_state(min(n, 64))
    u0 = u0.astype(jnp.float32)
    out = {}
    for name, info in pj.solvers.SOLVERS.items():
        if name == "kvaerno5":
            continue  # factors the dense Jacobian: not for fields
        jax.clear_caches()
        counted = _Counted(equation)
        start = time.perf_counter()
        jax.block_until_ready(pj.simulate(pj.Discretization(counted.equation, name, t1=1.0, steps=4), u0).us)
        first = time.perf_counter() - start
        after_first = counted.traces
        for steps in (5, 6, 7, 8, 9, 10, 12, 16, 32):
            pj.simulate(pj.Discretization(counted.equation, name, t1=1.0, steps=steps), u0)
        out[name] = {
            "seconds": first,
            "retraces in nine more step sizes": counted.traces - after_first,
            "order": info.order,
        }
        print(
            f"  {name:<12}{first:>6.2f} s   traced again {counted.traces - after_first} times in nine more step sizes"
        )
    return out


class _Counted:
    """Counts how often JAX traces the field, through a reaction source that is called once per trace."""

    def __init__(self, equation):
        self.traces = 0
        reaction = pj.FeedForward(D, FFN, norm=equation.reaction.norm, source=self._source, key=jax.random.key(1))
        self.equation = pj.MasterEquation(interaction=equation.interaction, reaction=reaction)

    def _source(self, x, t):
        self.traces += 1
        return jnp.zeros((x.shape[0], D), x.dtype)


def against_torch(n: int, rounds: int) -> dict:
    """Whole solves and gradients against torchdiffeq with fused attention, same weights, batch 1."""
    torch = _torch()
    if torch is None:
        print("  PyTorch and torchdiffeq are not installed: pip install -e '.[bench]'")
        return {"skipped": "PyTorch and torchdiffeq are not installed"}
    equation, u0 = equation_and_state(n)
    out = {}
    for name, method, how in (
        ("euler 24", "euler", {"steps": 24, "solver": "euler"}),
        ("rk4 24", "rk4", {"steps": 24, "solver": "rk4"}),
        ("dopri5 1e-5", "dopri5", {"rtol": 1e-5, "atol": 1e-5, "solver": "dopri5"}),
    ):

        @eqx.filter_jit
        def forward(e, u, how=how):
            return pj.simulate(pj.Discretization(e, t1=4.0, **how), u, save="end").us[-1]

        @eqx.filter_jit
        def gradient(e, u, how=how):
            def loss(pair):
                return jnp.mean(pj.simulate(pj.Discretization(pair[0], t1=4.0, **how), pair[1], save="end").us[-1] ** 2)

            return eqx.filter_grad(loss)((e, u))

        theirs = torch.solve(equation, u0, method, how.get("steps"))
        difference = float(np.abs(np.asarray(forward(equation, u0)) - theirs["forward"]()).max())
        table = take_turns(
            {f"{name} pdejax": blocked(forward, equation, u0), f"{name} torchdiffeq": theirs["forward"]},
            max(3, rounds // 3),
        )
        slow = take_turns(
            {
                f"{name} gradient pdejax": blocked(gradient, equation, u0),
                f"{name} gradient torchdiffeq": theirs["gradient"],
            },
            max(3, rounds // 5),
        )
        faster = ratio(table, f"{name} torchdiffeq", f"{name} pdejax")
        steeper = ratio(slow, f"{name} gradient torchdiffeq", f"{name} gradient pdejax")
        out[name] = table | slow | {"forward": faster, "gradient": steeper, "largest difference": difference}
        print(
            f"  {name}: torchdiffeq / pdejax forward {faster['min']:.2f} (median {faster['median']:.2f}), "
            f"gradient {steeper['min']:.2f} (median {steeper['median']:.2f}), largest difference {difference:.1e}"
        )
    return out


def train(n: int, rounds: int) -> dict:
    """Steps of training, 64 sequences of 50 tokens whatever `--tokens` says."""
    del n
    from training_speed import training  # pyright: ignore[reportMissingImports]

    return training(take_turns, ratio, D, HEADS, FFN, rounds)


def adjoints(n: int, rounds: int) -> dict:
    """Memory of a gradient through RK4, by adjoint and number of steps."""
    del rounds
    from training_speed import adjoint_memory  # pyright: ignore[reportMissingImports]

    return adjoint_memory(*equation_and_state(n))


def products_alone(n: int, rounds: int) -> dict:
    """Each product of the field and of its gradient by itself."""
    from products import products  # pyright: ignore[reportMissingImports]

    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        torch = None
    else:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return products(take_turns, torch, n, D, HEADS, FFN, rounds)


def blocks(n: int, rounds: int) -> dict:
    """Attention and its gradient by bytes of a block and by heads side by side, batch 1 and 8: what `auto` should choose."""
    from products import attention_by_blocks  # pyright: ignore[reportMissingImports]

    return attention_by_blocks(take_turns, n, HEADS, D // HEADS, rounds)


def second_start(n: int, rounds: int) -> dict:
    """What a command takes the second time, its programs kept."""
    del n, rounds
    from products import starts  # pyright: ignore[reportMissingImports]

    return starts()


def _torch():
    """The PyTorch side, or None where it is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import torchdiffeq  # pyright: ignore[reportMissingImports]
        from torch_twin import TorchField
    except ImportError:
        return None

    class Side:
        @staticmethod
        def evaluation(equation, u):
            network, state = TorchField(equation), torch.tensor(np.asarray(u))

            def call():
                with torch.no_grad():
                    return network(0.0, state)

            return call

        @staticmethod
        def solve(equation, u0, method, steps):
            span = torch.tensor([0.0, 4.0])
            options = {"step_size": 4.0 / steps} if steps else {}
            if method == "rk4":
                # Classic RK4 in torchdiffeq is the 3/8 rule: equal order and cost, other coefficients.
                options["perturb"] = False
            settings = {"method": method, "options": options, "rtol": 1e-5, "atol": 1e-5}
            plain, trained = TorchField(equation), TorchField(equation, gradients=True)
            odeint: Any = torchdiffeq.odeint  # returns a tuple as well, of other states
            state = torch.tensor(np.asarray(u0))[None]
            moving = state.clone().requires_grad_(True)

            def forward():
                with torch.no_grad():
                    return odeint(plain, state, span, **settings)[-1, 0].numpy()

            def gradient():
                trained.zero_grad()
                moving.grad = None
                (odeint(trained, moving, span, **settings)[-1] ** 2).mean().backward()

            return {"forward": forward, "gradient": gradient}

    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return Side


PARTS = {
    "solve": solve,
    "field": field,
    "memory": memory,
    "compile": compile_times,
    "training": train,
    "adjoints": adjoints,
    "torch": against_torch,
    "products": products_alone,
    "blocks": blocks,
    "starts": second_start,
}

if __name__ == "__main__":
    sys.exit(main())
