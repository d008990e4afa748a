"""A small problem for the training loop, and a process that trains on it, to be killed or to be one of two.

Least squares on random data with noise on the inputs, so that parameters, optimizer, key and order of the data all count.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdejax.training._fit import fit
from pdejax.training._step import TrainState


class Rows:
    """Batches of random rows in an order that depends on the seed and the epoch; a part of each for one of `count`."""

    def __init__(self, size=8, examples=24, seed=0, index=0, count=1):
        random = np.random.default_rng(7)
        self.inputs = random.normal(size=(examples, 5)).astype(np.float32)
        self.labels = self.inputs @ np.arange(1, 6, dtype=np.float32) + random.normal(size=examples).astype(np.float32)
        self.size, self.seed, self.index, self.count = size, seed, index, count
        self.taken = 0
        self.per_epoch = examples // size

    def __iter__(self):
        return self

    def __next__(self):
        epoch, place = divmod(self.taken, self.per_epoch)
        self.taken += 1
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.labels))
        rows = order[place * self.size : (place + 1) * self.size]
        part = self.size // self.count
        rows = rows[self.index * part : (self.index + 1) * part]
        return self.inputs[rows], self.labels[rows]

    def state(self):
        return {"seed": self.seed, "taken": self.taken}

    def restore(self, state):
        assert state["seed"] == self.seed
        self.taken = state["taken"]


def jitter(scale=0.01):
    """Noise on the gradients, from a key in the optimizer's state."""

    def update(updates, key, params=None):
        key, now = jax.random.split(key)
        return jax.tree.map(lambda x: x + scale * jax.random.normal(now, x.shape, x.dtype), updates), key

    return optax.GradientTransformation(lambda params: jax.random.key(5), update)


OPTIMIZER = optax.chain(jitter(), optax.adam(0.05))


def start(seed=0, scale=1.0):
    params = {"layers": [{"w": jnp.full((5,), scale, jnp.float32)}], "bias": jnp.zeros((), jnp.float32)}
    return TrainState(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params), jax.random.key(seed))


@functools.lru_cache
def make_step(bad_at=None, noise=0.1, donate=True):
    """With `bad_at` the loss of that step, and the parameters after it, are NaN."""

    def loss(params, inputs, labels, key):
        inputs = inputs + noise * jax.random.normal(key, inputs.shape, inputs.dtype)
        error = inputs @ params["layers"][0]["w"] + params["bias"] - labels
        return jnp.mean(jnp.square(error)), jnp.mean(jnp.abs(error) < 1, dtype=jnp.float32)

    def step(state, batch):
        inputs, labels = (jnp.asarray(x) for x in batch)
        key = jax.random.fold_in(state.key, state.step)
        (value, accuracy), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, inputs, labels, key)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
            updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if bad_at is not None:
            bad = jnp.where(state.step + 1 == bad_at, jnp.float32(jnp.nan), jnp.float32(1))
            value, params = value * bad, jax.tree.map(lambda x: x * bad, params)
        norms = jnp.stack([jnp.linalg.norm(gradients["layers"][0]["w"]), jnp.abs(gradients["bias"])])
        metrics = {"layer_gradient_norms": norms, "accuracy": accuracy, "loss": value}
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(step, donate_argnums=0 if donate else ())


def evaluate(state):
    """Distance of the weights from those of the data, and an accuracy that goes up with it down."""
    distance = float(jnp.linalg.norm(state.params["layers"][0]["w"] - jnp.arange(1, 6, dtype=jnp.float32)))
    return {"loss": distance, "accuracy": 1 / (1 + distance)}


def main(options):
    """Train as the options say; prints the number of each step taken and the outcome as JSON."""
    rows, mesh = options.pop("rows", {}), None
    pause, address = options.pop("pause", 0.0), options.pop("address", None)
    if address is not None:
        from pdejax.training._distributed import data_mesh, initialize_distributed

        initialize_distributed(address, 2, rows["index"])
        mesh = data_mesh()
    stop_at = options.pop("stop_at", None)
    noise, bad_at = options.pop("noise", 0.1), options.pop("bad_at", None)

    def on_step(n, state, metrics):
        print(n, flush=True)
        time.sleep(pause)
        if n == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    best = options.pop("best", None)
    result = fit(
        start(),
        make_step(bad_at, noise),
        Rows(**rows),
        best=None if best is None else tuple(best),
        evaluate=None if best is None else evaluate,
        on_step=on_step,
        mesh=mesh,
        progress=False,
        **options,
    )
    weights = np.asarray(result.state.params["layers"][0]["w"])
    outcome = {"stopped": result.stopped, "step": result.step, "weights": weights.tobytes().hex()}
    outcome |= {"loss": result.history["loss"].tolist(), "problems": result.problems, "best": result.best_step}
    outcome |= {"evaluations": result.evaluations, "files": result.files}
    print(json.dumps(outcome), flush=True)


def nursery():
    """A process for each line of options on standard input, at once: all is imported, and nothing of JAX has begun."""
    import orbax.checkpoint
    import tensorboardX.event_file_writer

    assert orbax.checkpoint and tensorboardX.event_file_writer
    for line in sys.stdin:
        child = os.fork()
        if not child:
            main(json.loads(line))
            sys.stdout.flush()
            os._exit(0)
        print(f"process {child}", flush=True)
        _, status = os.waitpid(child, 0)
        print(f"ended {status}", flush=True)


@contextlib.contextmanager
def open_nursery(errors, **variables):
    # No compilation cache: a process that is killed could leave half a program in it.
    environment = {name: os.environ[name] for name in ("PATH", "XLA_FLAGS")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    with open(errors, "w") as file:
        process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=60)


def live(nursery, options, kill=None):
    """One life; `kill` is ("start" or "begun", seconds). The last step it told of, and its outcome if it had one."""
    nursery.stdin.write(json.dumps(options) + "\n")
    nursery.stdin.flush()
    word, pid = nursery.stdout.readline().split()
    assert word == "process"
    timer = None

    def end():
        os.kill(int(pid), signal.SIGKILL)

    if kill is not None and kill[0] == "start":
        timer = threading.Timer(kill[1], end)
        timer.start()
    last, outcome = 0, None
    for line in nursery.stdout:
        if line.startswith("ended"):
            break
        if line.strip().isdecimal():
            last = int(line)
            if kill is not None and timer is None:
                timer = threading.Timer(kill[1], end)
                timer.start()
        elif line.endswith("}\n"):
            outcome = json.loads(line)
    if timer is not None:
        timer.cancel()
        timer.join()
    return last, outcome


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(json.loads(sys.argv[1]))
    else:
        nursery()
