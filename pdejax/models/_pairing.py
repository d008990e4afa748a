"""A Transformer and a PDE simulator side by side: three protocols, as the papers do not say which is theirs."""

from typing import Any, Literal, get_args

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray

from pdejax.models._config import _check_name, _positive_integer
from pdejax.models._simulator import Simulator, with_parameters
from pdejax.models._simulator_config import SimulatorConfig
from pdejax.models._transformer import Transformer

Protocol = Literal["shared", "distilled", "independent"]
# What a simulator that carries a Transformer's weights can change without having other weights.
_ENDS = ("embedding", "readout")
_REFINEMENTS = ("depth", "implementation", "dtype")


def pair(
    transformer: Transformer,
    protocol: Protocol = "shared",
    *,
    key: PRNGKeyArray | None = None,
    steps: int | None = None,
    solver: str | None = None,
    **changes: Any,
) -> Simulator:
    """The simulator that a Transformer is compared with, by one of three protocols.

    | `protocol`      | weights of the field            | embedding and head | then                                     |
    |-----------------|---------------------------------|--------------------|------------------------------------------|
    | `"shared"`      | the Transformer's               | the Transformer's  | only the step is refined                 |
    | `"distilled"`   | its own, from `key`             | the Transformer's  | fitted to hidden states and attention    |
    | `"independent"` | its own, from `key`             | its own            | trained on the task from its own seed    |

    - `steps` over the whole depth, a multiple of the layers; default one per layer. `solver`: default the one with which one
      step per layer is the Transformer's block.
    - `changes`: other arguments of `SimulatorConfig`, such as `diffusion` or `stabilization` (not for `"shared"`).

    Raises `ValueError` or `TypeError` for other protocols, a missing or a needless `key`, and what the configs refuse.
    """
    _check_name("protocol", protocol, get_args(Protocol))
    changes |= {name: value for name, value in (("steps", steps), ("solver", solver)) if value is not None}
    if protocol == "shared":
        if key is not None:
            raise ValueError("key has no use in protocol='shared', which draws no weights; leave it out")
        per_layer = 1
        if steps is not None:
            steps, layers = _positive_integer("steps", changes.pop("steps")), transformer.config.layers
            if steps % layers:
                raise ValueError(f"steps must be a multiple of the Transformer's {layers} layers, got {steps}")
            per_layer = steps // layers
        return shared_simulator(transformer, per_layer, changes.pop("solver", None), **changes)
    if key is None:
        raise ValueError(f"protocol={protocol!r} draws weights of its own: give key=jax.random.key(seed)")
    make = distilled_simulator if protocol == "distilled" else independent_simulator
    return make(transformer, key=key, **changes)


def shared_simulator(
    transformer: Transformer, steps_per_layer: int = 1, solver: str | None = None, **changes: Any
) -> Simulator:
    """A simulator with the Transformer's weights, embedding and head: `lift` as a model.

    With the default solver and one step per layer it computes what the Transformer does, to rounding; more steps per layer,
    or another solver, converge to the network of continuous depth with the same weights. `changes` may be `depth`
    (`"linear"` or `"cubic"` make the layers' weights knots), `implementation` and `dtype`.

    Raises `ValueError` for other changes, and for a post-LN Transformer with a solver that has no substeps, or with weights
    that are not piecewise constant: its norms belong to the two substeps of a layer.
    """
    unknown = sorted(set(changes) - set(_REFINEMENTS))
    if unknown:
        raise ValueError(
            f"{unknown}: a simulator that shares the Transformer's weights can change only steps, solver and "
            f"{', '.join(_REFINEMENTS)}; for another field use distilled_simulator or independent_simulator"
        )
    if changes.get("depth") == "shared":
        raise ValueError(
            "depth='shared' has one set of weights, the Transformer one per layer; use 'linear' or 'cubic'"
        )
    per_layer = _positive_integer("steps_per_layer", steps_per_layer)
    changes |= {"steps": per_layer * transformer.config.layers} | ({} if solver is None else {"solver": solver})
    config = SimulatorConfig.from_transformer(transformer.config, **changes)
    substeps = config.solver in ("lietrotter", "strang", "macaron")
    if config.stabilization == "retraction" and not (substeps and config.depth == "constant"):
        raise ValueError(
            f"a post-LN Transformer normalizes after each of the two substeps of a layer, which solver={config.solver!r} with "
            f"depth={config.depth!r} does not have; use 'lietrotter', 'strang' or 'macaron' and depth='constant'"
        )
    return with_parameters(Simulator(config, key=jax.random.key(0)), _weights(transformer))


def distilled_simulator(transformer: Transformer, *, key: PRNGKeyArray, **changes: Any) -> Simulator:
    """A simulator whose field is drawn from `key`, to be fitted to the Transformer by `pdejax.training.Distillation`.

    Embedding and head are the Transformer's, so that both start from the same field and are read the same way.
    `changes`: arguments of `SimulatorConfig`; `dim`, `vocab` and whatever else makes up the two ends must stay.
    """
    normed = transformer.final_norm is not None
    config = SimulatorConfig.from_transformer(transformer.config, **{"head_norm": normed} | changes)
    model = Simulator(config, key=key)
    theirs = {k: v for k, v in _weights(transformer).items() if k.split("/")[0] in _ENDS}
    ours = {k: v for k, v in model.parameters().items() if k.split("/")[0] in _ENDS}
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise ValueError(
            f"changes {sorted(changes)} give the simulator another embedding or head than the Transformer's; keep them, or use "
            "independent_simulator"
        )
    return with_parameters(model, model.parameters() | theirs)


def independent_simulator(transformer: Transformer, *, key: PRNGKeyArray, **changes: Any) -> Simulator:
    """A simulator of the Transformer's sizes, all its weights drawn from `key`. `changes`: arguments of `SimulatorConfig`."""
    return Simulator(SimulatorConfig.from_transformer(transformer.config, **changes), key=key)


def untrained_field(model: Any, key: PRNGKeyArray) -> Any:
    """A simulator of the same kind with a fresh field between the same embedding and head: what a fit is compared with."""
    fresh = type(model)(model.config, key=key)
    return eqx.tree_at(lambda m: (m.embedding, m.readout), fresh, (model.embedding, model.readout))


def _weights(transformer: Transformer) -> dict[str, Array]:
    """The Transformer's parameters by the names they have in a `Simulator`."""
    config, given, layers = transformer.config, transformer.parameters(), transformer.layer_weights()
    ends = {
        "embedding/embedding": "embedding/table",
        "embedding/kernel": "embedding/table",
        "embedding/bias": "embedding/bias",
        "positions": "embedding/positions",
        "final_norm/scale": "readout/norm/scale",
        "final_norm/bias": "readout/norm/bias",
        "head/kernel": "readout/weight",
        "head/bias": "readout/bias",
    }
    found = {new: given[old] for old, new in ends.items() if old in given}
    post = config.norm == "post"
    for term, names, norm in (
        ("interaction", ("wq", "wk", "wv", "wo", "bq", "bk", "bv", "bo"), "norm1"),
        ("reaction", ("w1", "b1", "w2", "b2"), "norm2"),
    ):
        found |= {f"stacked/{term}/{name}": layers[name] for name in names}
        inside = f"stacked/retractions/{norm[-1] == '2':d}" if post else f"stacked/{term}/norm"
        for place, weights in ((inside, layers[norm]), (f"stacked/{term}/norm_out", layers[f"{norm}_out"])):
            found |= {f"{place}/{name}": value for name, value in (weights or {}).items()}
    return {name: value for name, value in found.items() if value is not None}
