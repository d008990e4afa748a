"""Algorithm 1: its forward part against a literal loop, its checks against closed forms, and one small run."""

import dataclasses
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import cli
from pdejax.analysis import mesh_norm
from pdejax.solvers import Grid
from pdejax.studies.numerics._algorithm1 import CONTROL, algorithm1, verdicts
from pdejax.studies.numerics._algorithm1_config import Algorithm1Config
from pdejax.studies.numerics._algorithm1_model import Algorithm1Model, build_equation, measure_orders, stability_rows

SMALL = Algorithm1Config(
    layers=2, tokens=4, dim=4, heads=2, ffn=6, time_steps=3, warmup=4, training_steps=6, batch=16, x_dim=3, updates=1
)

QUICK = dataclasses.replace(SMALL, bounds=False, refine=False, weight_decay=0.02, beta=1e-3)


def model_of(config, features=3):
    model = Algorithm1Model(config, features=features, classes=5, key=jax.random.key(2))
    rng = np.random.default_rng(0)
    # Biases and exchange that are not zero, so that the loop has something to get wrong.
    return jax.tree.map(
        lambda a: (
            jnp.asarray(np.asarray(a) + 0.2 * rng.standard_normal(a.shape)) if eqx.is_array(a) and a.ndim > 1 else a
        ),
        model,
    )


def literal(model, values):
    """Lines 6–29 of Algorithm 1 for one image, in NumPy loops."""
    e, dt = model.equation, model.dt
    a, r = e.layers.interaction, e.layers.reaction
    layers, tokens = e.size, values.shape[0]
    d = model.inputs.shape[1]
    dx = 1 / tokens
    u0 = values @ np.asarray(model.inputs) + np.asarray(model.positions)
    u = [u0.copy() if model.start == "all" or l == 0 else np.zeros_like(u0) for l in range(layers)]
    for _ in range(model.time_steps):
        new = []
        for l in range(layers):
            diffusion = np.zeros((tokens, d))
            for i in range(tokens):  # zero flux at the walls: the neighbour beyond them is the token itself
                left, right = u[l][max(i - 1, 0)], u[l][min(i + 1, tokens - 1)]
                diffusion[i] = float(e.layers.diffusion.diffusivity[l]) * (right - 2 * u[l][i] + left) / dx**2
            attention = np.zeros((tokens, d))
            for h in range(a.wq.shape[2]):
                q, k, v = (u[l] @ np.asarray(w[l, :, h]) for w in (a.wq, a.wk, a.wv))
                for i in range(tokens):
                    scores = np.array([q[i] @ k[j] / math.sqrt(q.shape[1]) for j in range(tokens)])
                    weights = np.exp(scores) / np.exp(scores).sum()
                    attention[i] += (weights @ v) @ np.asarray(a.wo[l, h])
            hidden = np.maximum(0, u[l] @ np.asarray(r.w1[l]) + np.asarray(r.b1[l]))
            reaction = hidden @ np.asarray(r.w2[l]) + np.asarray(r.b2[l])
            arriving = leaving = 0.0
            if l > 0:
                arriving = u[l - 1] @ np.asarray(e.exchange.w[l - 1]).T + np.asarray(e.exchange.b[l - 1])
            if l < layers - 1:
                leaving = u[l] @ np.asarray(e.exchange.w[l]).T + np.asarray(e.exchange.b[l])
            rate = diffusion + float(a.strength[l]) * attention + float(r.strength[l]) * reaction + arriving - leaving
            new.append(u[l] + dt * rate)
        u = new
    return np.stack(u)


@pytest.mark.parametrize(("start", "layers"), [("all", 1), ("all", 3), ("first", 3)])  # of one layer all is the first
def test_the_field_equals_a_literal_loop(start, layers, relative):
    config = dataclasses.replace(SMALL, layers=layers, start=start, time_steps=5, strength=0.7, diffusivity=0.01)
    model = model_of(config)
    values = np.random.default_rng(1).standard_normal((4, 3))
    expected = literal(model, values)
    run = jax.jit(lambda x: (model.final(x), model.hidden_states(x, None), model(x, None)))
    final, states, found = run(values)
    assert relative(final, expected) < 1e-13
    assert states.shape == (layers + 1, 4, 4)
    logits = expected[-1].mean(axis=0) @ np.asarray(model.head) + np.asarray(model.bias)
    np.testing.assert_allclose(found, logits, rtol=1e-12)


def test_alpha_and_d_are_inputs_and_all_else_is_trained():
    model = model_of(SMALL)
    marked = eqx.filter(model, model.trainable())
    held = eqx.filter(model, model.trainable(), inverse=True)
    assert (
        held.equation.layers.diffusion.diffusivity is not None and held.equation.layers.interaction.strength is not None
    )
    assert marked.equation.layers.diffusion.diffusivity is None and marked.equation.layers.interaction.strength is None
    trained = sum(leaf.size for leaf in jax.tree.leaves(marked))
    d, ffn, layers = 4, 6, 2
    field = layers * (4 * d * d + 2 * d * ffn + ffn + d) + (layers - 1) * (d * d + d)
    assert trained == field + 3 * d + 4 * d + 5 * d + 5


def test_stability_of_diffusion_alone_is_v1_21_and_the_eigenvalues():
    """Without attention, network and exchange all three say Δt ≤ Δx²/2D (the last up to the grid's largest wave number)."""
    config = dataclasses.replace(SMALL, tokens=16, diffusivity=0.01, strength=0.0, exchange=0.0)
    model = Algorithm1Model(config, features=3, classes=5, key=jax.random.key(0))
    model = eqx.tree_at(
        lambda m: (m.equation.layers.reaction.w2, m.equation.exchange.w),
        model,
        (jnp.zeros((2, 6, 4)), jnp.zeros((1, 4, 4))),
    )
    rows = stability_rows(model, jnp.ones((16, 3)))
    limit = (1 / 16) ** 2 / (2 * 0.01)
    for row in rows:
        assert row["v1_21"] == pytest.approx(config.dt / limit, rel=1e-12)
        assert row["v1_21_holds"] == (config.dt <= limit)
        assert row["corrected_dt"] == pytest.approx(limit, rel=1e-12)
        assert row["dt_eigenvalues"] == pytest.approx(limit / math.cos(math.pi / 32) ** 2, rel=1e-6)


def test_v1_21_does_not_see_what_the_eigenvalues_and_the_corrected_bound_do():
    """A strong reaction makes Euler unstable; v1 (21) has no term for it (claim C3)."""
    model = model_of(dataclasses.replace(SMALL, dt=0.5))
    strong = eqx.tree_at(
        lambda m: (m.equation.layers.reaction.w1, m.equation.layers.reaction.w2),
        model,
        (jnp.broadcast_to(jnp.eye(4, 6), (2, 4, 6)), jnp.broadcast_to(-8.0 * jnp.eye(6, 4), (2, 6, 4))),
    )
    rows = stability_rows(strong, jnp.ones((4, 3)))
    before = stability_rows(model, jnp.ones((4, 3)))
    for row, old in zip(rows, before, strict=True):
        assert row["v1_21"] == pytest.approx(old["v1_21"]) and row["v1_21_holds"]
        assert not row["corrected_holds"] and row["corrected_dt"] == 0 and row["lipschitz"] > old["lipschitz"] + 4
        assert row["dt_eigenvalues"] < 0.5


def test_the_lipschitz_constant_holds_between_two_runs():
    """One step up to Δx²/2D: |||δ⁺||| ≤ (1 + hG)|||δ|||, Theorem 4 with c = 0, which is no certificate for G > 0."""
    model = model_of(dataclasses.replace(SMALL, diffusivity=0.02))
    values = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
    rows = stability_rows(model, values)
    assert all(row["corrected_dt"] == 0 for row in rows)
    h, rate = 1 / (2 * 0.02 * 4**2), max(row["lipschitz"] for row in rows)
    u = model.initial(values)
    v = u + 1e-3 * jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], u.shape))

    def size(w):
        return np.max(np.linalg.norm(np.asarray(w), axis=-1))

    step = jax.jit(lambda u: u + h * model.equation(0.0, u, None))
    after = np.asarray(step(u)) - np.asarray(step(v))
    assert size(after) <= (1 + h * rate) * size(u - v)


@pytest.mark.slow
def test_orders_are_eulers_and_the_laplacians():
    config = dataclasses.replace(SMALL, tokens=16, diffusivity=0.02)
    model = Algorithm1Model(config, features=3, classes=5, key=jax.random.key(4))
    values = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)))
    orders = measure_orders(config, model, values)
    assert orders["time"]["order"] == pytest.approx(1, abs=0.15)
    assert orders["space"]["order"] == pytest.approx(2, abs=0.3)
    assert min(orders["time"]["differences"]) > 1e-10
    # The finer grid contains the coarser one's points.
    np.testing.assert_allclose(Grid(18).points[1::3], Grid(6).points, rtol=1e-12)
    assert mesh_norm(values).shape == ()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("algorithm1")
    return out, algorithm1(dataclasses.replace(QUICK, out=str(out)))


@pytest.mark.slow
def test_a_run_is_saved_with_its_curves(finished):
    out, result = finished
    content = json.loads((out / "algorithm1.json").read_text())
    assert content["study"] == "algorithm1" and content["results"] == json.loads(json.dumps(result.results))
    assert (out / "algorithm1.png").stat().st_size > 20_000
    runs = content["results"]["runs"]
    assert [run["name"] for run in runs] == ["v1 (14)", "v1 (3)", "algorithm 1", CONTROL]
    for run in runs:
        assert all(len(curve) == 6 for curve in run["curves"].values())
        assert run["start"] == content["results"]["warmup"]["end"]  # all from the same parameters
        assert 0 <= run["end"]["accuracy"] <= 1 and len(run["end"]["stability"]) == 2
    assert set(content["verdicts"]) >= {"v1 (14)", "v1 (3)", "algorithm 1", "C9", "v1 (21)"}


@pytest.mark.slow
def test_weights_shrink_and_grow_as_the_signs_say(finished):
    """Beside the run with λ = β = 0, on the same batches: by about e^{∓λ·6}."""
    _, result = finished
    end = {run["name"]: run["end"]["parameter_norm"] for run in result.results["runs"]}
    assert end["v1 (14)"] < 0.93 * end[CONTROL]
    assert end["v1 (3)"] > 1.07 * end[CONTROL]
    assert end["v1 (14)"] < end["algorithm 1"] < end[CONTROL]  # decay ηλ instead of λ


@pytest.mark.slow
def test_an_interrupted_study_goes_on_from_its_finished_runs(finished, tmp_path):
    """Told to stop when the third run begins, then started again: only what was missing is run, to the same numbers."""
    _, whole = finished
    config, said = dataclasses.replace(QUICK, out=str(tmp_path)), []

    def interrupt(text):
        said.append(text)
        if len(said) == 4:  # warm-up, two runs, and now the third
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        algorithm1(config, report=interrupt)
    again: list[str] = []
    result = algorithm1(config, report=again.append)
    assert again == [said[0], said[3], f"{CONTROL}: 6 steps", "plots and files"]
    for ours, theirs in zip(result.results["runs"], whole.results["runs"], strict=True):
        np.testing.assert_allclose(ours["curves"]["loss"], theirs["curves"]["loss"], rtol=1e-9)


@pytest.mark.slow
def test_the_command_prints_its_tables(tmp_path, capsys):
    options = ("layers", "tokens", "dim", "ffn", "time_steps", "warmup", "training_steps", "batch", "x_dim", "updates")
    given = [f"--{n.replace('_', '-')}={getattr(SMALL, n)}" for n in options]
    code = cli.main(["algorithm1", *given, "--no-bounds", "--no-refine", "--signs", "v1 (14)", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert code == 0 and "v1 (14)" in text and "saved" in text and "v1 (21)" in text and "C9" not in text


def fake_run(name, norms, informations):
    end = {"accuracy": 0.5, "stability": [{"v1_21": 0.4, "corrected_dt": 0.1, "dt_eigenvalues": 0.5}]}
    curves = {"parameter_norm": list(norms), "information": list(informations)}
    return {"name": name, "curves": curves, "diverged": None, "start": end, "end": end}


def test_the_verdict_follows_the_numbers():
    def judged(**runs):
        names = {"compress": "v1 (14)", "expand": "v1 (3)", "ascend": "algorithm 1", "control": CONTROL}
        results = {"runs": [fake_run(names[k], *v) for k, v in runs.items()]}
        return verdicts(SMALL, results)["C9"]

    usual = {
        "compress": ([2, 1], [3, 1]),
        "expand": ([2, 3], [3, 3]),
        "ascend": ([2, 2], [3, 5]),
        "control": ([2, 2], [3, 3]),
    }
    assert judged(**usual).startswith("contradict")
    assert "not seen: (14)" in judged(**{**usual, "compress": ([2, 1], [3, 3.5])})
    assert "not seen: (3)" in judged(**{**usual, "expand": ([2, 2.5], [3, 3]), "control": ([2, 2.6], [3, 3])})
    assert "not seen: line 33" in judged(**{**usual, "ascend": ([2, 2], [3, 2.9])})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 0}, "layers=0"),
        ({"batch": 1}, "batch=1"),
        ({"tokens": 8}, "tokens=8"),
        ({"heads": 3}, "heads=3 must divide"),
        ({"dt": 0.0}, "dt=0.0"),
        ({"noise": 0.0}, "noise=0.0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"estimator": "knn"}, "estimator='knn'"),
        ({"start": "last"}, "start='last'"),
        ({"signs": ("v1 (15)",)}, "signs="),
        ({"signs": "v1 (14)"}, "signs="),
        ({"signs": ()}, "signs="),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(change, words):
    with pytest.raises((ValueError, TypeError), match=words):
        dataclasses.replace(SMALL, **change)


def test_more_images_per_step_than_there_are_is_refused():
    with pytest.raises(ValueError, match="batch=5000"):
        algorithm1(dataclasses.replace(SMALL, batch=5000))


def test_no_diffusion_leaves_the_term_out():
    equation = build_equation(dataclasses.replace(SMALL, diffusivity=0.0), Grid(4), key=jax.random.key(0))
    assert "diffusion" not in equation.names()
