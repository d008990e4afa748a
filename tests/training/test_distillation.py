"""Trajectory matching: the loss against NumPy, and a fit that works on held-out data beside its nulls."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pdejax as pj
from pdejax.data._dataset import Batch
from pdejax.models import Simulator, SimulatorConfig, pair, untrained_field
from pdejax.training import merge_model, split_model
from pdejax.training._distillation import Distillation

SIZES = {"vocab": 7, "dim": 8, "heads": 2, "layers": 2, "ffn": 16, "head": "classification", "classes": 3}


def batch(seed: int, size: int = 4, n: int = 6) -> Batch:
    random = np.random.default_rng(seed)
    lengths = np.where(np.arange(size) % 2, n - 2, n)
    tokens = random.integers(0, 7, (size, n)).astype(np.int32)
    return Batch(tokens, np.arange(n)[None] < lengths[:, None], random.integers(0, 3, size).astype(np.int32))


@pytest.fixture(scope="module")
def teacher() -> pj.Transformer:
    return pj.Transformer(pj.Architecture(**SIZES), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def student(teacher) -> Simulator:
    return pair(teacher, "distilled", key=jax.random.key(1))


@nnx.jit
def seen_by_teacher(teacher, tokens):
    return teacher(tokens), teacher.hidden_states(tokens), teacher.attention_maps(tokens)


@eqx.filter_jit
def seen_by_student(student, tokens):
    return student.observe(tokens)


@eqx.filter_jit
def measured(task, model, data):
    return task.loss(model, data, None)[1]


def by_hand(teacher, student, data: Batch) -> dict[str, float]:
    """The three terms of the loss and the KL of uniform attention, example by example on the real tokens alone."""
    rows = []
    for tokens, mask in zip(data.inputs, data.mask, strict=True):
        real = np.flatnonzero(mask)
        tokens = tokens[real]
        x, u, q = (np.asarray(found, float) for found in seen_by_student(student, tokens))
        y, z, p = (np.asarray(found, float) for found in seen_by_teacher(teacher, tokens))
        y, x = (np.exp(v) / np.exp(v).sum() for v in (y, x))
        n = len(real)
        rows.append(
            {
                "hidden_error": np.mean([np.sum((a - b) ** 2) / np.sum(b**2) for a, b in zip(u, z, strict=True)]),
                "attention_kl": np.mean(np.sum(p * np.log(p / q), axis=-1)),
                "logit_kl": np.sum(y * np.log(y / x)),
                "uniform_kl": np.mean(np.sum(p * np.log(p * n), axis=-1), axis=-1),
            }
        )
    return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}


def test_the_loss_against_numpy(teacher, student):
    data = batch(3)
    task = Distillation(teacher, student, hidden_weight=0.5, attention_weight=2.0, logit_weight=3.0)
    loss, metrics = jax.jit(lambda: task.loss(student, data, jax.random.key(0)))()
    expected = by_hand(teacher, student, data)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, err_msg=name)
    total = 0.5 * expected["hidden_error"] + 2 * expected["attention_kl"] + 3 * expected["logit_kl"]
    np.testing.assert_allclose(loss, total, rtol=2e-4)
    assert set(metrics) == {"hidden_error", "attention_kl", "logit_kl"} and int(task.weight(data)) == 4


def test_a_student_with_the_teachers_weights_has_nothing_to_learn(teacher):
    same, fresh = pair(teacher), untrained_field(pair(teacher), jax.random.key(0))
    task = Distillation(teacher)
    found, null = (measured(task, model, batch(5)) for model in (same, fresh))
    assert float(found["hidden_error"]) < 1e-9 and float(found["attention_kl"]) < 1e-6
    assert float(null["hidden_error"]) > 0.05  # though they share the embedding


@pytest.fixture(scope="module")
def fitted(teacher, student):
    """120 steps of Adam on random tokens."""
    task = Distillation(teacher, student)
    params, static = split_model(student)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, data):
        def loss(params):
            return task.loss(merge_model(params, static), data, None)

        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
            updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for i in range(120):
        params, state, value = step(params, state, batch(100 + i, 16))
        losses.append(float(value))
    return losses, merge_model(params, static)


def test_a_fit_lowers_loss_and_held_out_error(teacher, student, fitted):
    losses, model = fitted
    assert np.mean(losses[-5:]) < 0.2 * losses[0]
    task, held_out, fresh = Distillation(teacher), batch(1, 32), untrained_field(model, jax.random.key(7))
    before, after, null = (measured(task, m, held_out) for m in (student, model, fresh))
    for name in ("hidden_error", "attention_kl"):
        assert float(before[name]) > 4 * float(after[name])
    # Both nulls are beaten: a fresh field, and attention that looks everywhere alike.
    assert float(null["hidden_error"]) > 4 * float(after["hidden_error"])
    uniform = np.mean(by_hand(teacher, student, held_out)["uniform_kl"])
    assert float(after["attention_kl"]) < 0.5 * uniform


def test_no_gradient_reaches_the_teacher(teacher, student):
    task = Distillation(teacher, logit_weight=1.0)
    data = batch(6)

    def loss(parameters):
        moved = jax.tree.map(lambda x: x, task)
        object.__setattr__(moved, "parameters", parameters)
        return moved.loss(student, data, None)[0]

    differentiated = jax.jit(jax.value_and_grad(loss))
    value, gradient = differentiated(task.parameters)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda x: np.asarray(x) * np.float32(1.1), task.parameters)
    assert float(differentiated(moved)[0]) != float(value)  # it does depend on them


@pytest.mark.slow
def test_depths_in_common(teacher):
    """Four layers over the same t1 against two: every second state is compared, with itself giving zero."""
    config = SimulatorConfig.of(teacher.architecture, layers=4, t1=2.0)
    fine = Simulator(config, key=jax.random.key(0))
    task = Distillation(fine, hidden_weight=1.0, attention_weight=1.0)
    loss, _ = task.loss(fine, batch(7), None)
    assert abs(float(loss)) < 1e-6
    coarse = pair(teacher, "distilled", key=jax.random.key(1))
    error = task.loss(coarse, batch(7), None)[1]["hidden_error"]
    data, total = batch(7), []
    for tokens, mask in zip(data.inputs, data.mask, strict=True):
        z, u = fine.observe(tokens, mask)[1][::2, mask], coarse.observe(tokens, mask)[1][:, mask]
        total.append(jnp.mean(jnp.sum((u - z) ** 2, axis=(1, 2)) / jnp.sum(z**2, axis=(1, 2))))
    np.testing.assert_allclose(error, np.mean(total), rtol=1e-5)


@pytest.mark.slow
def test_a_causal_language_model(teacher):
    """Rows of zeros above the diagonal take no part."""
    config = teacher.architecture.replace(causal=True, head="lm", classes=None)
    decoder = pj.Transformer(config, rngs=nnx.Rngs(2))
    model = pair(decoder, "distilled", key=jax.random.key(0))
    data = batch(8)
    loss, metrics = Distillation(decoder, logit_weight=1.0).loss(model, data, None)
    assert np.isfinite(loss) and all(float(value) > 0 for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"hidden_weight": -1.0}, ValueError, "Distillation: hidden_weight=-1.0 must be one finite number ≥ 0"),
        ({"attention_weight": float("nan")}, ValueError, "attention_weight=nan must be"),
        ({"logit_weight": "1"}, TypeError, "logit_weight='1' must be"),
        ({"hidden_weight": 0.0, "attention_weight": 0.0}, ValueError, "nothing to fit"),
    ],
)
def test_bad_weights(teacher, options, error, says):
    with pytest.raises(error, match=says):
        Distillation(teacher, **options)


def test_bad_teachers_and_batches(teacher, student):
    with pytest.raises(TypeError, match=r"flax.nnx.Module or an equinox.Module"):
        Distillation(lambda tokens, mask: tokens)
    three = pair(teacher, "independent", key=jax.random.key(0), layers=3)
    with pytest.raises(ValueError, match="a student of 3 layers"):
        Distillation(teacher, three)
