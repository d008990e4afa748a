"""What is printed of every public object: a few lines of words and numbers, never the tree that it holds."""

import dataclasses
import functools
import importlib
import inspect
import json
import pathlib
import typing

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax import solvers
from pdejax._figure import AbstractRecord
from pdejax.analysis import growth, limits, loops, numerics, stability
from pdejax.analysis.information import channels, trained
from pdejax.analysis.information._stages import Stages
from pdejax.runs import Column, Picture, Row, Table
from pdejax.runs.sweep import Chunk, Progress, Sweep
from pdejax.studies import AnalyzeConfig, Judgement, Study, claims
from pdejax.studies.audit import AuditConfig
from pdejax.studies.loops import LoopsConfig

NAMES = json.loads((pathlib.Path(__file__).parent / "public_names.json").read_text())
N, D = 5, 64
KEY, GRID, U = jax.random.key(0), pj.Grid(N), jnp.ones((N, D))
CONFIG = pj.Architecture(vocab=11, dim=8, heads=2, layers=3, ffn=12, head="classification", classes=2)
NORM = {"norm": pj.LayerNorm(D), "norm_out": pj.RMSNorm(D)}
ATTENTION = pj.Attention(D, 8, key=KEY, **NORM, rotary=10000.0, causal=True, window=2)
FEED = pj.FeedForward(D, 4 * D, key=KEY, **NORM, activation="silu")
LAYER = pj.MasterEquation(ATTENTION, FEED, pj.Diffusion(GRID, jnp.ones(D)), pj.SpatialNorm(1.0, grid=GRID))
LONG = jnp.ones(1000)
NETWORK = trained.ConditionalGaussian(8, 4, key=KEY, full=True)
FIGURE = pj.Figure(jnp.ones(40), jnp.zeros(40), 2 * jnp.ones(40), {"shuffled": jnp.zeros(40)})


class Wide(pj.terms.AbstractTerm):
    """A term of a user."""

    inner: pj.Attention
    weights: dict

    def __call__(self, t, u, args):
        return u

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        pass


@functools.cache
def model():
    return pj.Transformer(CONFIG, rngs=nnx.Rngs(0))


def measure(key, beta):
    return {"cosine": beta}


def study():
    return Study(
        name="many",
        title="Many",
        question="?" * 200,
        source="own",
        measure=lambda *a: None,
        judge=lambda *a: Judgement(),
    )


SWEEP = {
    "axes": {"beta": tuple(np.linspace(0.0, 1.0, 500))},
    "dims": {"cosine": ()},
    "given": {"weights": np.ones(999)},
}
# Made without compiling. Records that the library fills are filled with long arrays.
MADE = {
    "Architecture": lambda: CONFIG,
    "Attention": lambda: ATTENTION,
    "BarberAgakov": lambda: trained.BarberAgakov(8, 4, key=KEY, entropy=1.0),
    "Batch": lambda: pj.data.Batch(np.zeros((64, 32), np.int32), np.ones((64, 32), bool), np.zeros(64, np.int32)),
    "CLUB": lambda: trained.CLUB(8, 4, key=KEY),
    "Certificate": lambda: stability.field_lipschitz(LAYER.interaction, N, 1.0),
    "Channel": lambda: channels.gaussian_channel(0.5, 3),
    "Chunk": lambda: Chunk(0, (0, 0), (3, 4)),
    "Claim": lambda: claims.CLAIMS["C1"],
    "Classification": lambda: pj.training.Classification(0.1),
    "Column": lambda: Column("quantity", ".2f"),
    "CommonNoise": lambda: limits.CommonNoise(limits.attention_means(0.5), variance=0.1),
    "ConditionalGaussian": lambda: NETWORK,
    "ContinuumBounds": lambda: numerics.ContinuumBounds(1.0, 2.0),
    "CoupledOperator": lambda: solvers.CoupledOperator(GRID, jnp.asarray([[1.0, 0.3], [-0.3, 1.0]])),
    "DepthVarying": lambda: pj.DepthVarying.from_layers([LAYER] * 3, 1.0, "linear"),
    "DiagonalizableOperator": lambda: solvers.DiagonalizableOperator(GRID, 0.1),
    "Diffusion": lambda: LAYER.diffusion,
    "Discretization": lambda: pj.Discretization(LAYER, "rk4", t1=1.0, steps=2),
    "Distillation": lambda: pj.training.Distillation(model()),
    "EffectiveDiffusion": lambda: pj.EffectiveDiffusion(GRID, ATTENTION, FEED, U),
    "Exchange": lambda: pj.Exchange(D, key=KEY),
    "FeedForward": lambda: FEED,
    "FieldArgs": lambda: pj.FieldArgs(jnp.ones(N, bool)),
    "FieldConstants": lambda: numerics.FieldConstants(1.0, 2.0, 3.0),
    "Figure": lambda: FIGURE,
    "Grid": lambda: pj.Grid(N, "dirichlet"),
    "GuardState": lambda: solvers.GuardState(jnp.asarray(False), jnp.asarray(1.0), jnp.asarray(0.1), (LONG, LONG)),
    "InfoNCE": lambda: trained.InfoNCE(8, 4, key=KEY),
    "LanguageModel": lambda: pj.training.LanguageModel(0.1),
    "Laplacian": lambda: pj.Laplacian(GRID),
    "LayerNorm": lambda: pj.LayerNorm(D),
    "LayerNormRelaxation": lambda: pj.LayerNormRelaxation(D),
    "LayerStack": lambda: pj.LayerStack(LAYER),
    "LieTrotter": lambda: solvers.LieTrotter([solvers.ETDRK4(), solvers.RKC2(spectral_radius=lambda *a: 1.0)]),
    "Linear": lambda: LAYER.diffusion.linear(N),
    "LinearDamping": lambda: pj.LinearDamping(1.0),
    "Loop": lambda: loops.loop_of(jnp.tanh, U),
    "MasterEquation": lambda: LAYER,
    "MultilayerEquation": lambda: pj.MultilayerEquation([LAYER] * 3, [pj.Exchange(D, key=KEY)] * 2),
    "SimulatorConfig": lambda: pj.SimulatorConfig(CONFIG),
    "MultilayerSimulatorConfig": lambda: pj.MultilayerSimulatorConfig(CONFIG),
    "MultilayerSimulator": lambda: pj.MultilayerSimulator(pj.MultilayerSimulatorConfig(CONFIG), key=KEY),
    "Network": lambda: pj.as_network(model()),
    "OrderFit": lambda: numerics.fit_order([0.1, 0.05, 0.025], [1e-1, 5e-2, 2.5e-2]),
    "Pairs": lambda: channels.Pairs(LONG[:, None], LONG[:, None], LONG[:, None], 0.1),
    "PaperEstimate": lambda: trained.PaperEstimate(8, 4, key=KEY),
    "ParallelSolution": lambda: solvers.parallel.ParallelSolution(U, LONG[0], LONG, jnp.asarray(3), jnp.asarray(True)),
    "Picture": lambda: Picture("states.png", "The states.", lambda: None),
    "Progress": lambda: Progress(
        chunks=4, done=4, measured=4, runs=8, seconds=0.1, compiling=0.1, kept_seconds=0.0, shard=(0, 1), folder="runs"
    ),
    "RKC2": lambda: solvers.RKC2(spectral_radius=lambda *a: 1.0),
    "ROCK2": lambda: solvers.ROCK2(stages=8),
    "ETDRK4": lambda: solvers.ETDRK4(),
    "RMSNorm": lambda: pj.RMSNorm(D),
    "Recipe": lambda: limits.Recipe(LAYER, retraction=pj.LayerNorm(D)),
    "Retract": lambda: solvers.Retract(solvers.Euler(), pj.LayerNorm(D)),
    "Rotary": lambda: pj.terms.Rotary(64),
    "Row": lambda: Row("cosine", pj.Figure(0.5, 0.4, 0.6), (0.5, 0.5)),
    "ShardedEquation": lambda: pj.shard_tokens(pj.MasterEquation(FEED, ATTENTION)),
    "Simulator": lambda: pj.Simulator(pj.SimulatorConfig(CONFIG), key=KEY),
    "SolverInfo": lambda: solvers.SOLVERS["lietrotter"],
    "SpatialNorm": lambda: pj.SpatialNorm(1.0, grid=GRID),
    "SphereProjection": lambda: pj.SphereProjection(),
    "Strang": lambda: solvers.Strang([solvers.Euler(), solvers.Euler()]),
    "Study": study,
    "Sweep": lambda: Sweep(measure=measure, **SWEEP),
    "Table": lambda: Table((Column("a"), Column("b")), [(1.0, FIGURE)] * 99, "A table."),
    "Transformer": model,
    "TridiagonalOperator": lambda: solvers.TridiagonalOperator(GRID, jnp.full(N, 0.1)),
    **{name: getattr(solvers, name) for name in ("ARK3", "ARK4", "ARS222", "ETDRK1", "ETDRK2", "LinearFlow", "RK4")},
    "AbstractBlowupGuard": lambda: solvers.BlowupGuard(diffrax.ConstantStepSize(), limit=1e3),
    "AnalyzeConfig": lambda: AnalyzeConfig(model="folder"),
    "AuditConfig": lambda: AuditConfig(network="folder"),
    "Growth": lambda: growth.growth_bound(LAYER, N),
    "LoopsConfig": lambda: LoopsConfig(network="folder"),
    "StabilizedState": lambda: solvers.StabilizedState((LONG, LONG), LONG, *[jnp.asarray(1.0), *[jnp.asarray(3)] * 3]),
    "Stages": lambda: Stages(1.0, 2.0, FIGURE[0], True, "seen in both"),
    "Stats": lambda: pj.Stats(*[jnp.asarray(3)] * 3),
    "StepConstants": lambda: stability.step_constants(LAYER, N, 1.0),
    "StepMeasurement": lambda: stability.StepMeasurement(0.1, (0.1, 0.2), 40, 1.0),
    "StepPrediction": lambda: stability.StepPrediction(0.1, -20.0 + 1j, 20.0, True),
    "StoredStates": lambda: pj.networks.StoredStates(np.ones((3, 9, 5, 8)), None, np.ones((9, 5), bool)),
    "Trajectory": lambda: pj.Trajectory(
        LONG,
        LONG[:, None, None],
        pj.Stats(*[jnp.asarray(3)] * 3),
        *[jnp.asarray(False), jnp.asarray(jnp.inf)],
        jnp.asarray(True),
    ),
    "Wide": lambda: Wide(ATTENTION, {"a": LONG, "b": [LONG]}),
}
# What `models/test_repr.py` and the tests of data, of runs and of training print; tuples of arrays, which are their content.
ELSEWHERE = {
    *("Convergence", "FitResult", "Jacobian", "Observed", "Reference", "SchemeConvergence", "Static", "TrainState"),
    *("TrainedModel", "Calibration", "Dataset", "Finding", "Result", "Tokenizer", "TrainResult", "BuiltReport"),
    *("GaussianTokens", "PreLNState"),
}


def public_classes():
    """Public records and modules, and those that public functions say they return."""
    found = {}
    for package, names in NAMES.items():
        for one in (getattr(importlib.import_module(package), name) for name in names):
            hint = None if inspect.isclass(one) or not inspect.isfunction(one) else one.__annotations__.get("return")
            for kind in (one, hint, *typing.get_args(hint)):
                record = inspect.isclass(kind) and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"))
                if record and not inspect.isabstract(kind) and kind.__module__.startswith("pdejax"):
                    found[kind.__name__] = kind
    return found


def by_default(kind):
    """Whether these are settings, which can be made without an argument."""
    if issubclass(kind, eqx.Module | Exception | pj.Architecture):
        return False
    return all(one.default is not one.empty for one in inspect.signature(kind).parameters.values())


def test_no_public_module_prints_its_tree():
    """Every module has a `repr` of its own: that of equinox writes a line for each array below it."""
    for name, kind in public_classes().items():
        if issubclass(kind, eqx.Module) and dataclasses.fields(kind):
            assert kind.__repr__ is not eqx.Module.__repr__, name


def test_every_public_record_is_in_the_table():
    lists_its_numbers = AbstractRecord  # see test_figure.py
    left = {
        name for name, kind in public_classes().items() if not (issubclass(kind, lists_its_numbers) or by_default(kind))
    }
    assert left - set(MADE) - ELSEWHERE == set()


@pytest.mark.parametrize("name", sorted(MADE))
def test_what_is_printed_is_short(name):
    text = repr(MADE[name]())
    lines = text.splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= 240, text
    for inside in ("f32[", "f64[", "Array(", "array(", "(\n", "object at 0x", "<function", "np.float64("):
        assert inside not in text, text


def test_settings_print_as_they_are_made():
    for kind in public_classes().values():
        if by_default(kind):
            text = repr(kind())
            assert text.startswith(f"{kind.__name__}(") and "\n" not in text


def test_a_module_says_what_it_was_made_of():
    assert repr(pj.LinearDamping(0.5)) == "LinearDamping(gamma=0.5)"
    assert repr(pj.Grid(5)) == "Grid(n=5)" and repr(pj.Grid(5, "dirichlet")) == "Grid(n=5, boundary='dirichlet')"
    assert (
        repr(pj.FeedForward(4, 8, key=KEY, activation="tanh"))
        == "FeedForward(w1 (4, 8), strength=1, activation='tanh')"
    )
    assert repr(MADE["CommonNoise"]()) == "CommonNoise(features=AttentionMeans(beta=0.5), variance=0.1)"
    field = pj.MasterEquation(ATTENTION, FEED)
    words = "∂u/∂t = attention + feed-forward"
    assert repr(limits.Recipe(field, "mean", 1)) == f"Recipe(base={words}, weights='mean', alpha=1)"
    sharded = repr(pj.shard_tokens(field))
    assert sharded.startswith(words) and sharded.endswith(f"tokens on {jax.device_count()} devices")
