"""The `training` part of speed.py: steps of training against plain Flax, and what gradients remember."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax_twin import Classifier, training_step  # pyright: ignore[reportMissingImports]

import pdejax as pj
from pdejax.data import Batch
from pdejax.training import Classification, make_step, split_model, start_training
from pdejax.training._step import gradient_norms

VOCAB, CLASSES, LAYERS = 16, 10, 6


def training(take_turns, ratio, dim: int, heads: int, ffn: int, rounds: int) -> dict:
    """A step of Adam on 64 sequences of 50 tokens: pdejax's Transformer, the same in plain Flax, the simulator."""
    sizes = {"vocab": VOCAB, "dim": dim, "heads": heads, "layers": LAYERS, "ffn": ffn}
    ends = {"head": "classification", "classes": CLASSES}
    random = np.random.default_rng(0)
    tokens = random.integers(1, VOCAB, (64, 50)).astype(np.int32)
    batch = Batch(
        tokens, np.arange(50) < random.integers(25, 51, (64, 1)), random.integers(0, CLASSES, 64).astype(np.int32)
    )
    ours = pj.Transformer(pj.Architecture(**sizes, **ends), rngs=nnx.Rngs(0))
    field = pj.Simulator(pj.SimulatorConfig.of(**sizes, **ends), key=jax.random.key(0))
    full = pj.Simulator(pj.SimulatorConfig.full(**sizes, **ends), key=jax.random.key(0))
    runs = {
        "plain Flax + optax": _plain(sizes, batch),
        "Transformer": _ours(ours, batch),
        "simulator, Lie-Trotter, 1 step per layer": _ours(field, batch),
        "simulator, full equation": _ours(full, batch),
    }
    table = take_turns(runs, rounds)
    names = list(runs)
    found = table | {
        "Transformer / plain Flax": ratio(table, names[1], names[0]),
        "simulator / Transformer": ratio(table, names[2], names[1]),
        "full simulator / Transformer": ratio(table, names[3], names[1]),
        "gradient norms per layer": _norms(ours, batch, take_turns, ratio, rounds),
    }
    for name in names[1:]:
        other = names[0] if name == names[1] else names[1]
        print(f"  {name} / {other} = {ratio(table, name, other)['median']:.3f} (median)")
    return found


def _plain(sizes, batch):
    carry, step = training_step(Classifier(**sizes, classes=CLASSES, rngs=nnx.Rngs(0)), optax.adam(1e-3))
    held = [carry]

    def call():
        held[0], loss = step(held[0], batch)
        jax.block_until_ready(loss)

    return call


def _ours(model, batch):
    params, static = split_model(model)
    optimizer = optax.with_extra_args_support(optax.adam(1e-3))
    step = make_step(Classification(), optimizer, static)
    held = [start_training(params, optimizer, jax.random.key(0))]

    def call():
        held[0], metrics = step(held[0], batch)
        jax.block_until_ready(metrics)

    return call


def _norms(model, batch, take_turns, ratio, rounds) -> dict:
    """What the norms recorded at every step cost: a gradient with them and without."""
    params, static = split_model(model)
    task = Classification()

    def gradient(params):
        return jax.grad(lambda p: task.loss(pj.training.merge_model(p, static), batch, jax.random.key(0))[0])(params)

    bare = jax.jit(gradient)
    recorded = jax.jit(lambda p: (g := gradient(p), gradient_norms(g)))
    calls = {
        "gradient": lambda: jax.block_until_ready(bare(params)),
        "gradient and norms": lambda: jax.block_until_ready(recorded(params)),
    }
    table = take_turns(calls, rounds, quiet=True)
    found = table | {"with / without": ratio(table, "gradient and norms", "gradient")}
    print(f"  gradient with norms of every layer / without = {found['with / without']['median']:.3f} (median)")
    return found


def adjoint_memory(equation, u0) -> dict:
    """MiB of temporaries of a gradient through `simulate`, by adjoint and number of steps, from the compiled program."""
    out: dict = {}
    adjoints: tuple[Any, ...] = (None, "recursive", "direct", "backsolve")
    for adjoint in adjoints:
        name = adjoint or "default (one checkpoint per step)"
        sizes = {}
        for steps in (6, 24, 96):

            def loss(equation, u, adjoint=adjoint, steps=steps):
                found = pj.simulate(
                    pj.Discretization(equation, "rk4", t1=6.0, steps=steps, adjoint=adjoint), u, save="end"
                )
                return jnp.mean(found.us[-1] ** 2)

            analysis = jax.jit(jax.grad(loss)).lower(equation, u0).compile().memory_analysis()
            assert analysis is not None
            sizes[str(steps)] = analysis.temp_size_in_bytes / 2**20
        out[name] = sizes
        print(f"  {name:<36}" + "".join(f"{steps:>5} steps {mib:>8.1f} MiB" for steps, mib in sizes.items()))
    return out
