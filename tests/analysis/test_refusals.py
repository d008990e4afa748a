"""Arguments that do not fit one another: an error that begins with the name of the function that the user called, at once.

Wrong values of single arguments: `test_wrong_arguments.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax import analysis as an
from pdejax import cli, exact
from pdejax.analysis import limits, loops
from pdejax.analysis.growth._energy import decay_bound
from pdejax.runs.sweep import Sweep, find_shard, run_sweep
from pdejax.studies.limits import LimitsConfig

pytestmark = pytest.mark.bad_input

KEY = jax.random.key(0)
jnp.zeros(())  # what every first check compiles
N, D = 3, 4
# Arrays of JAX, since bringing one of NumPy in counts as a program.
U, WIDE, ONE, COUNTS, NONE = (
    jnp.ones((N, D)),
    jnp.ones((N, D + 1)),
    jnp.ones((1, 1)),
    jnp.ones((N, D), int),
    jnp.full((N, D), jnp.nan),
)
TS, US, NAN, EIGHT = jnp.arange(2.0), jnp.ones((2, N, D + 1)), jnp.asarray([jnp.nan]), jnp.arange(8)
FIELD = pj.MasterEquation(pj.Attention(D, 2, key=KEY), pj.FeedForward(D, 8, key=KEY))
RECIPE = limits.Recipe(FIELD)
SIZES = {"vocab": 5, "dim": D, "heads": 2, "layers": 2, "ffn": 4}
MODEL = pj.Transformer(pj.Architecture(**SIZES, loops=2), rngs=nnx.Rngs(0))
NET = pj.as_network(MODEL)
LOOP = loops.loop_of(jnp.tanh, U)
BEYOND = np.asarray([9, 1])
MAPS = np.full((2, 1, 2, N, N), 1 / N)
REAL = np.ones((1, N), bool)


def measure(key, beta):
    return {"cosine": beta}


def swept(**given):
    return Sweep(**{"measure": measure, "axes": {"beta": (1.0, 2.0)}, "dims": {"cosine": ()}} | given)


# (the function that the user called, the call, what else the message says)
WRONG = {
    "more exponents than entries": ("loop_exponents", lambda: loops.loop_exponents(LOOP, k=1000), "k=1000 must be"),
    "no pass": ("loop_exponents", lambda: loops.loop_exponents(LOOP, loops=0), "loops=0 must be"),
    "seldom orthogonal": ("loop_exponents", lambda: loops.loop_exponents(LOOP, qr_every=99), "qr_every=99 must divide"),
    "a batch of tokens": ("loop_of", lambda: loops.loop_of(MODEL, U), r"inputs .*tokens has shape \(3, 4\)"),
    "ids of a model": ("loop_of", lambda: loops.loop_of(MODEL, BEYOND), "tokens has ids from 1 to 9"),
    "ids of a network": ("loop_of", lambda: loops.loop_of(NET, BEYOND), "tokens has ids from 1 to 9"),
    "ids, gradients": ("gradient_flow", lambda: an.gradient_flow(NET, BEYOND, key=KEY), "tokens has ids from 1 to 9"),
    "a model for a loop": ("classify_loop", lambda: loops.classify_loop(MODEL), "loop_of makes one"),
    "a network for a loop": ("fixed_point", lambda: loops.fixed_point(NET, U), "loop_of makes one"),
    "width of a recipe": (
        "depth_check",
        lambda: limits.depth_check(RECIPE, WIDE, layers=(4, 8, 16, 32), key=KEY),
        "built for fields of width dim=4, but the field has 5",
    ),
    "networks for a recipe": (
        "depth_check",
        lambda: limits.depth_check({count: MODEL for count in (4, 8, 16, 32)}, U),
        r"recipe\[4\] is a .*; give a list of at least 3 networks of 4 layers",
    ),
    "no file of a model": ("load_model", lambda: pj.load_model("nowhere.npz"), "no model at 'nowhere.npz'"),
    "odd layers": ("depth_check", lambda: limits.depth_check(RECIPE, U, layers=(4, 8, 16, 7), key=KEY), "must be even"),
    "a recipe for noise": (
        "sde_ends",
        lambda: limits.sde_ends(RECIPE, U, steps=2, draws=2, key=KEY),
        r"limits\.CommonNoise\(features\) makes one",
    ),
    "features of noise": (
        "sde_ends",
        lambda: limits.sde_ends(limits.CommonNoise(lambda u: u[0]), U, steps=2, draws=2, key=KEY),
        r"it must give \(n, r\), here \(3, r\)",
    ),
    "features of networks": (
        "network_ends",
        lambda: limits.network_ends(limits.CommonNoise(lambda u: u.T), U, layers=2, draws=2, key=KEY),
        r"features of the system gives \(4, 3\)",
    ),
    "NaN in a closure": (
        "gaussian_closure",
        lambda: limits.gaussian_closure(NAN, ONE, logits=ONE, values=ONE, t1=1.0),
        "mean has 1 NaN",
    ),
    "a density of counts": (
        "circle_closure",
        lambda: limits.circle_closure(EIGHT, 1.0, t1=1.0),
        "density has type int",
    ),
    "maps of other layers": (
        "attention_cosine",
        lambda: an.attention.attention_cosine(MAPS, MAPS[:1], REAL),
        r"have shapes \(2, 1, 2, 3, 3\), \(1, 1, 2, 3, 3\)",
    ),
    "maps of other tokens": (
        "attention_divergence",
        lambda: an.attention.attention_divergence(MAPS, MAPS, REAL[:, :2]),
        r"\(1, 2\); they must be",
    ),
    "width of a budget": (
        "energy_budget",
        lambda: an.growth.energy_budget(FIELD, TS, US),
        "but the field has 5",
    ),
    "width of constants": (
        "field_constants",
        lambda: an.numerics.field_constants(FIELD, TS, US),
        "but the field has 5",
    ),
    "width of a source": (
        "negative_fraction",
        lambda: an.growth.negative_fraction(FIELD.reaction, US),
        "but the field has 5",
    ),
    "a state that is none": ("predict_change", lambda: loops.predict_change(LOOP, NONE), "u has 12 NaN"),
    "a point from none": ("fixed_point", lambda: loops.fixed_point(LOOP, NONE), "u has 12 NaN"),
    "no answers": ("safe_range", lambda: loops.safe_range(np.ones((0, 3)), trained=1), r"shape \(0, 3\)"),
    "width of rates": ("energy_rates", lambda: an.growth.energy_rates(FIELD, WIDE), "but the field has 5"),
    "counts as energies": ("energy_rates", lambda: an.growth.energy_rates(FIELD, COUNTS), "type int64"),
    "fewer energies": ("decay_rate", lambda: an.growth.decay_rate(np.arange(3.0), np.ones(2)), r"\(3,\) and \(2,\)"),
    "a bound from below 0": (
        "decay_bound",
        lambda: decay_bound(-1.0, 0.1, 0.0, 1.0),
        "initial must be finite",
    ),
    "no direction": (
        "adversarial_update",
        lambda: an.residual.adversarial_update(ONE, 0.5, key=KEY),
        "no orthogonal direction",
    ),
    "no angle": ("adversarial_update", lambda: an.residual.adversarial_update(U, 1.0, key=KEY), "ratio=1.0 must be"),
    "a closed form below 0": ("gaussian_blowup_time", lambda: exact.gaussian_blowup_time(-1.0, 1.0), "must be"),
    "a closed form of a shape": (
        "linear_reaction",
        lambda: exact.linear_reaction(U, np.eye(D + 1), 1.0),
        r"must have shape \(4, 4\)",
    ),
    "a closed form of a name": ("mode_sum", lambda: exact.mode_sum(U, "robin"), "boundary.* must be one of"),
    "another axis": ("Sweep", lambda: swept(axes={"gamma": (1.0,)}), r"measure takes \(key, beta\), .*axes gamma"),
    "one axis too few": ("Sweep", lambda: swept(measure=lambda key, beta, n: {"cosine": n}), "the axes beta"),
    "no axis": ("Sweep", lambda: swept(measure=lambda: {"cosine": 0.0}), "the axes beta"),
    "a shard of a sweep": (
        "run_sweep",
        lambda: run_sweep(swept(), "nowhere", shard="5/2"),
        "shard='5/2' must be 'i/n'",
    ),
    "a shard": ("find_shard", lambda: find_shard("x"), "shard='x' must be 'i/n'"),
    "a shard of a job": (
        "find_shard",
        lambda: find_shard(environment={"JAX_PROCESS_ID": "4", "JAX_NUM_PROCESSES": "2"}),
        "JAX_PROCESS_ID=4",
    ),
    "odd layers of a study": ("LimitsConfig", lambda: LimitsConfig(layers=(8, 16, 32, 7)), "layers=7 must be even"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_function_that_was_called_refuses(name, monkeypatch):
    from jax._src import compiler

    owner, call, said = WRONG[name]

    def refuse(*args, **kwargs):
        raise AssertionError("compiled before its arguments were checked")

    if not name.startswith("ids"):  # ids are looked at where a model, whose layers are stacked first, reads them in
        monkeypatch.setattr(compiler, "backend_compile_and_load", refuse)
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=rf"^{owner}: (?s:.*){said}"):
        call()


# What a command says of a path that is not there names all that may be.
COMMANDS = {
    "loops": (["loops", "nonexist"], "loops: network='nonexist': ", "pdejax train --out"),
    "audit": (["audit", "nonexist"], "audit: network='nonexist': ", "pdejax train --out"),
    "analyze": (["analyze", "nonexist"], "analyze: model='nonexist' ", "pdejax train --out"),
    "limits": (
        ["limits", "--layers", "8", "16", "32", "7"],
        "LimitsConfig: layers=7 must be even",
        "every second layer",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_that_was_called_refuses(name, tmp_path, monkeypatch, capsys):
    arguments, begins, said = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.main(arguments))
    text = capsys.readouterr().err
    assert ended.value.code == 2 and begins in text and said in text, text
    assert not list(tmp_path.iterdir()) and "load_pretrained" not in text
