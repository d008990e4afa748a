"""Everything that is measured on a GPU, in one command; no part begins after nine minutes.

    python benchmarks/gpu.py --out benchmarks/results            # on a GPU, with jax[cuda13]; PyTorch beside it if it is there
    python benchmarks/gpu.py --small --out out                   # rehearsal on any machine: tiny sizes, nothing to conclude from
    python benchmarks/gpu.py --only verify field --out out       # some parts

Parts: `verify` (closed forms, on the device), `field` (forward and gradient, by tokens, width, type, mask; share of the matrix
product's rate), `attention` (against cuDNN's own, with padding, causal and grouped heads), `torch` (against PyTorch and
torchdiffeq on the same card), `stiff` (ETDRK4 against Tsit5), `sweeps` (runs a second of a stability map and a phase diagram),
`training` (a step, against plain Flax and optax), `memory` (temporaries of gradients, and the most that was in use).
No part, and no case of `field`, `attention` and `sweeps`, begins later than `--minutes`; what was left out is named. A part that
fails is named, too, and the exit code is then 1, as where closed forms are missed. Writes gpu.json after every part.
"""

import argparse
import functools
import pathlib
import sys
import time
import traceback
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from speed import blocked, ratio, take_turns  # pyright: ignore[reportMissingImports]

import pdejax as pj
from pdejax._products import platform_now
from pdejax.runs import environment
from pdejax.runs._files import check_folder, write_json
from pdejax.terms import attend


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for gpu.json")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="rehearse with tiny sizes, on whatever device there is")
    parser.add_argument("--minutes", type=float, default=9.0, help="no case begins later than this")
    given = parser.parse_args(arguments)
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda") and not given.small:
        print(
            f"gpu.py: JAX sees no GPU here, only {device.device_kind!r}. Install jax[cuda13] on a machine that has one, or "
            "rehearse with --small.",
            file=sys.stderr,
        )
        return 2
    check_folder(given.out)
    bench = Bench(given.small, time.monotonic() + 60 * given.minutes)
    for name in given.only:
        if not bench.late(name):
            measure(bench, name)
        content = {
            "study": "gpu",
            "card": device.device_kind,
            "rehearsal": given.small,
            "config": {"only": given.only, "minutes": given.minutes},
            "left out for want of time": bench.left_out,
            "environment": environment(),
            "results": bench.results,
        }
        write_json(given.out / "gpu.json", content)
    wrong = [name for name, found in bench.results.items() if "failed" in found or found.get("passed") is False]
    if wrong:
        print(f"gpu.py: failed: {', '.join(wrong)}; see {given.out / 'gpu.json'}.", file=sys.stderr)
    return 1 if wrong else 0


def measure(bench: "Bench", name: str) -> None:
    """Measure one part; what was measured before is worth more than the rest of a part that fails."""
    print(f"== {name}", flush=True)
    started = time.monotonic()
    try:
        bench.results[name] = PARTS[name](bench)
    except Exception as error:
        traceback.print_exc()
        bench.results[name] = {"failed": f"{type(error).__name__}: {error}"}
    bench.results[name]["seconds"] = time.monotonic() - started


class Bench:
    """Sizes of this run, its results, and the time that is left."""

    def __init__(self, small: bool, deadline: float):
        self.small, self.deadline = small, deadline
        self.results: dict[str, dict] = {}
        self.left_out: list[str] = []

    def pick(self, full, tiny):
        return tiny if self.small else full

    def late(self, case: str) -> bool:
        """Whether there is no time left for a case, which is then named in the result."""
        late = time.monotonic() > self.deadline
        if late:
            self.left_out.append(case)
        return late

    @property
    def rounds(self) -> int:
        return self.pick(7, 2)


def equation_and_state(n: int, dim: int, dtype, *, heads: int, causal: bool = False, kv_heads: int | None = None):
    """Pre-LN attention and GELU feed-forward in one type, as in speed.py."""
    ka, kr, ku = jax.random.split(jax.random.key(0), 3)
    equation = pj.MasterEquation(
        interaction=pj.Attention(dim, heads, norm=pj.LayerNorm(dim), causal=causal, kv_heads=kv_heads, key=ka),
        reaction=pj.FeedForward(dim, 4 * dim, norm=pj.LayerNorm(dim), key=kr),
    )
    return equation, jax.random.normal(ku, (n, dim), dtype)


def flops(n: int, dim: int, causal: bool) -> float:
    """Products of one evaluation of the field; of a causal map, half."""
    return 2.0 * n * (4 * dim * dim + 8 * dim * dim) + 4.0 * n * n * dim / (2 if causal else 1)


@functools.cache
def peak(dtype: str, size: int) -> float:
    """Flops a second of a large square product in a type: what shares are shares of."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    call = blocked(jax.jit(lambda x: x @ x), a)
    return 2.0 * size**3 / take_turns({"product": call}, 5, quiet=True)["product"]["min"]


def gradient_of(function):
    """The compiled gradient of the mean square of a field."""
    return jax.jit(jax.grad(lambda pair, *rest: jnp.mean(jnp.square(function(*pair, *rest).astype(jnp.float32)))))


def verify(bench: Bench) -> dict:
    """`pdejax verify` on this device."""
    del bench
    from pdejax.cli import main as command

    status = command(["verify", "--quiet"])
    return {"passed": status == 0, "exit status": status}


def field(bench: Bench) -> dict:
    """One evaluation of the field and its gradient: seconds, and the share of the matrix product's rate."""
    out: dict = {}
    sizes = bench.pick((1024, 4096, 16384, 65536), (64,))
    for n in sizes:
        for dim, heads in bench.pick(((128, 4), (768, 12)), ((32, 2),)):
            for dtype in ("float32", "bfloat16"):
                for kind in ("all", "mask", "causal") if n in sizes[:2] or dtype == "bfloat16" else ("all",):
                    case = f"N={n} d={dim} {dtype} {kind}"
                    if not bench.late(f"field: {case}"):
                        out[case] = _one_field(bench, n, dim, heads, dtype, kind)
                        print(
                            f"  {case:<36}" + "  ".join(f"{k} {v:.3g}" for k, v in out[case]["share"].items()),
                            flush=True,
                        )
    return out


def _one_field(bench: Bench, n: int, dim: int, heads: int, dtype: str, kind: str) -> dict:
    equation, u = equation_and_state(n, dim, dtype, heads=heads, causal=kind == "causal")
    args = pj.terms.FieldArgs(mask=jnp.arange(n) < n - n // 8) if kind == "mask" else None

    def value(e, v, a):
        return e(0.0, v, a)

    calls = {
        "forward": blocked(jax.jit(value), equation, u, args),
        "gradient": blocked(gradient_of(value), (equation, u), args),
    }
    table = take_turns(calls, bench.rounds, quiet=True)
    work = flops(n, dim, kind == "causal")
    rate = peak(dtype, bench.pick(8192, 128))
    share = {name: factor * work / table[name]["min"] / rate for name, factor in (("forward", 1), ("gradient", 3))}
    return table | {"share": share, "product's rate, Gflop/s": rate / 1e9}


def attention(bench: Bench) -> dict:
    """`attend` as the library chooses, against cuDNN's kernel called as it is; blocked in float32 and with a window."""
    out: dict = {}
    fused = platform_now() != "cpu"
    for n in bench.pick((1024, 4096, 16384), (64,)):
        for name, heads, groups, dk, options in (
            ("plain", 12, 12, 64, {}),
            ("causal", 12, 12, 64, {"causal": True}),
            ("padding", 12, 12, 64, {"bias": True}),
            ("grouped heads", 12, 4, 64, {}),
            ("window", 12, 12, 64, {"window": 256}),
        ):
            case = f"N={n} {name}"
            if not bench.late(f"attention: {case}"):
                out[case] = _one_attention(bench, n, heads, groups, dk, dict(options), fused)
                print(
                    f"  {case:<26}" + "  ".join(f"{k} {v['min']:.2f}" for k, v in out[case].items() if " / " in k),
                    flush=True,
                )
    return out


def _one_attention(bench: Bench, n: int, heads: int, groups: int, dk: int, options: dict, fused: bool) -> dict:
    keys = jax.random.split(jax.random.key(1), 3)
    q, k, v = (
        jax.random.normal(key, (n, h, dk), jnp.bfloat16) for key, h in zip(keys, (heads, groups, groups), strict=True)
    )
    kernel = "cudnn" if fused else "xla"
    causal = bool(options.get("causal"))
    if options.pop("bias", False):
        options["bias"] = jnp.where(jnp.arange(n) < n - n // 8, 0.0, -jnp.inf).astype(jnp.float32)

    def ours(q, k, v):
        return attend(q, k, v, **options)

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=kernel)

    calls = {}
    for name, function in (("pdejax", ours), (f"jax.nn, {kernel}", theirs)):
        calls[f"{name} forward"] = blocked(jax.jit(function), q, k, v)
        gradient = jax.jit(
            jax.grad(lambda q, k, v, f=function: jnp.sum(jnp.square(f(q, k, v).astype(jnp.float32))), (0, 1, 2))
        )
        calls[f"{name} gradient"] = blocked(gradient, q, k, v)
    table = take_turns(calls, bench.rounds, quiet=True)
    mine, other = list(calls)[:2], list(calls)[2:]
    found = {
        f"{kernel} / pdejax, {what}": ratio(table, b, a)
        for what, a, b in zip(("forward", "gradient"), mine, other, strict=True)
    }
    return table | found


def against_torch(bench: Bench) -> dict:
    """Whole solves and gradients against torchdiffeq with fused attention on the same device, float32, same weights."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import torchdiffeq  # pyright: ignore[reportMissingImports]
        from torch_twin import TorchField  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("  PyTorch and torchdiffeq are not installed: pip install -e '.[bench]'")
        return {"skipped": "PyTorch and torchdiffeq are not installed"}
    if not bench.small and not torch.cuda.is_available():
        return {"skipped": "PyTorch sees no GPU"}
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    equation, u0 = equation_and_state(bench.pick(1000, 32), bench.pick(128, 16), jnp.float32, heads=bench.pick(4, 2))
    network = TorchField(equation, gradients=True).to(where)
    state = torch.tensor(np.asarray(u0), device=where)[None].requires_grad_(True)
    span, out = torch.tensor([0.0, 4.0], device=where), {}
    fixed = bench.pick(24, 2)
    for method in ("euler", "rk4", "dopri5"):
        how: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5} if method == "dopri5" else {"steps": fixed}
        options = {} if method == "dopri5" else {"step_size": 4.0 / fixed}

        def ours(e, u, how=how, method=method):
            return pj.simulate(pj.Discretization(e, method, t1=4.0, **how), u, save="end").us[-1]

        def theirs(method=method, options=options):
            return torchdiffeq.odeint(network, state, span, method=method, options=options, rtol=1e-5, atol=1e-5)[-1]

        def forward(theirs=theirs):
            with torch.no_grad():
                return theirs().cpu()

        def gradient(theirs=theirs):
            network.zero_grad()
            state.grad = None
            (theirs() ** 2).mean().backward()
            assert state.grad is not None
            return state.grad.cpu()

        calls = {
            "pdejax forward": blocked(eqx.filter_jit(ours), equation, u0),
            "torchdiffeq forward": forward,
            "pdejax gradient": blocked(gradient_of(ours), (equation, u0)),
            "torchdiffeq gradient": gradient,
        }
        table = take_turns(calls, bench.rounds, quiet=True)
        found = {
            f"torchdiffeq / pdejax, {w}": ratio(table, f"torchdiffeq {w}", f"pdejax {w}")
            for w in ("forward", "gradient")
        }
        out[method] = table | found
        print(f"  {method:<8}" + "  ".join(f"{name} {item['min']:.2f}" for name, item in found.items()), flush=True)
    return out


def stiff(bench: Bench) -> dict:
    """A field with diffusion on 1000 points: four steps of ETDRK4 against Tsit5 at 1e-6."""
    n, dim = bench.pick((1000, 16), (32, 4))
    keys = jax.random.split(jax.random.key(2), 3)
    equation = pj.MasterEquation(
        pj.Attention(dim, 2, key=keys[0]), pj.FeedForward(dim, 4 * dim, key=keys[1]), pj.Diffusion(pj.Grid(n), 0.01)
    )
    u0 = jax.random.normal(keys[2], (n, dim))
    end = bench.pick(0.25, 0.01)
    solves = {
        "ETDRK4, 4 steps": pj.Discretization(equation, "etdrk4", t1=end, steps=4),
        "Tsit5 at 1e-6": pj.Discretization(equation, "tsit5", t1=end, rtol=1e-6, atol=1e-6),
    }
    calls = {name: blocked(lambda u, d=d: pj.simulate(d, u).us, u0) for name, d in solves.items()}
    table = take_turns(calls, bench.pick(3, 1))
    names = list(calls)
    evaluations = {name: int(pj.simulate(d, u0).stats.evaluations) for name, d in solves.items()}
    return table | {"Tsit5 / ETDRK4": ratio(table, names[1], names[0]), "evaluations": evaluations}


def sweeps(bench: Bench) -> dict:
    """Runs a second of a stability map and of the phase diagram, compilation included."""
    from pdejax.studies import PhasesConfig, StabilityConfig, phase_diagram, stability

    resolution, draws, steps = bench.pick((40, 1472, 400), (4, 0, 40))
    one = StabilityConfig(solvers=(), families=("softmax attention",), resolution=resolution, draws=draws, steps=steps)
    betas, seeds, tokens, lanes = bench.pick((16, 64, (8, 16, 32), 512), (2, 2, (4,), 4))
    two = PhasesConfig(betas=betas, seeds=seeds, tokens=tokens, lanes=lanes, t1=bench.pick(32.0, 8.0))
    counts = {
        "stability map": (resolution**2 + draws, lambda: stability(one)),
        "phase diagram": (betas * seeds * len(tokens) * len(two.normalization), lambda: phase_diagram(two)),
    }
    out: dict = {}
    for name, (runs, call) in counts.items():
        if not bench.late(f"sweeps: {name}"):
            started = time.perf_counter()
            call()
            seconds = time.perf_counter() - started
            out[name] = {"runs": runs, "seconds": seconds, "runs per second": runs / seconds}
            print(f"  {name}: {runs} runs, {runs / seconds:.0f} a second", flush=True)
    return out


def train(bench: Bench) -> dict:
    """A step of training against plain Flax and optax."""
    from training_speed import training  # pyright: ignore[reportMissingImports]

    return training(take_turns, ratio, *bench.pick((768, 12, 3072), (16, 2, 32)), bench.rounds)


def memory(bench: Bench) -> dict:
    """MiB of temporaries of a gradient of the field, and of one through RK4; the most that was in use on the device."""
    out: dict = {}
    for n in bench.pick((4096, 16384), (64,)):
        for dtype in ("float32", "bfloat16"):
            equation, u = equation_and_state(n, bench.pick(768, 16), dtype, heads=bench.pick(12, 2))
            lowered = gradient_of(lambda e, v: e(0.0, v, None)).lower((equation, u))
            out[f"gradient of the field, N={n} {dtype}"] = _temporaries(lowered)
    equation, u = equation_and_state(bench.pick(1000, 64), bench.pick(128, 16), jnp.float32, heads=2)

    def solve(e, v):
        return pj.simulate(pj.Discretization(e, "rk4", t1=6.0, steps=24), v, save="end").us[-1]

    out["gradient through 24 RK4 steps"] = _temporaries(gradient_of(solve).lower((equation, u)))
    used = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in used:
        out["most in use"] = used["peak_bytes_in_use"] / 2**20
    for name, mib in out.items():
        print(f"  {name:<44}{mib:>10.1f} MiB")
    return out


def _temporaries(lowered) -> float:
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20


PARTS = {
    "verify": verify,
    "field": field,
    "attention": attention,
    "torch": against_torch,
    "stiff": stiff,
    "sweeps": sweeps,
    "training": train,
    "memory": memory,
}

if __name__ == "__main__":
    sys.exit(main())
