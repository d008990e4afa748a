"""What is printed of models and configurations: a block with numbers, and never the modules."""

import jax
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.models._observe import Observed
from pdejax.training import TrainConfig

SIZES = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 12}


def test_configurations_are_written_as_they_are_made():
    architecture = pj.Architecture(**SIZES, norm="post")
    config = pj.SimulatorConfig(architecture, steps=6)
    assert repr(architecture) == "Architecture(vocab=11, dim=8, heads=2, layers=3, ffn=12, norm='post')"
    assert repr(config).startswith(
        f"SimulatorConfig(architecture={architecture!r}, t1=3.0, steps=6, solver='lietrotter'"
    )
    scope = {"Architecture": pj.Architecture, "SimulatorConfig": pj.SimulatorConfig}
    assert eval(repr(config), scope) == config and eval(repr(architecture), scope) == architecture
    assert repr(TrainConfig(model="bare", heads=2)) == (
        "TrainConfig(dataset='listops', model='bare', heads=2, norm='none', steps=1000)"
    )


@pytest.mark.parametrize("kind", ["Transformer", "Simulator", "MultilayerSimulator"])
def test_a_model_is_a_block_with_numbers(kind):
    architecture = pj.Architecture(**SIZES, head="classification", classes=4)
    if kind == "Transformer":
        model = pj.Transformer(architecture, rngs=nnx.Rngs(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    elif kind == "Simulator":
        model = pj.Simulator(pj.SimulatorConfig(architecture, diffusion="scalar"), key=jax.random.key(0))
        count = model.parameter_count
    else:
        model = pj.MultilayerSimulator(pj.MultilayerSimulatorConfig(architecture), key=jax.random.key(0))
        count = model.parameter_count
    lines = repr(model).splitlines()
    assert str(model) == repr(model)
    assert lines[0] == f"{kind}, {count:,} parameters" and len(lines) <= 5 and max(map(len, lines)) < 130
    assert "3 layers: attention + feed-forward (gelu), sequential, pre-LN" in lines[1]
    assert "in: 11 token ids, sinusoidal positions; out: 4 classes" in lines[3]
    if kind == "Simulator":
        assert "field: scalar diffusion; lietrotter, 3 steps of h = 1 over t in [0, 3]" in lines[4]


def test_what_holds_arrays_shows_their_shapes():
    found = Observed(np.zeros(4), np.zeros((4, 2, 5, 8)), None)
    assert repr(found) == "Observed(logits (4,), states (4, 2, 5, 8), maps not asked for)"
    batch = pj.data.Batch(np.zeros((2, 5), np.int32), np.ones((2, 5), bool), np.zeros(2, np.int32))
    assert repr(batch) == "Batch(inputs (2, 5), mask (2, 5), labels (2,))"
