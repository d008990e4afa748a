"""A Transformer and a PDE simulator side by side: three protocols, as the papers do not say which is theirs. `lift` is the
first of them, the simulator with the Transformer's weights: block = field + solver + step."""

from typing import Any, Literal, get_args

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import choice, instance
from pdejax._discretization import Discretization
from pdejax.models._simulator import Simulator, with_parameters
from pdejax.models._simulator_config import SimulatorConfig
from pdejax.models._transformer import Transformer

Protocol = Literal["shared", "distilled", "independent"]
# What a simulator that carries a Transformer's weights can change without having other weights.
_ENDS = ("embedding", "readout")
_REFINEMENTS = ("steps", "solver", "weights", "implementation", "dtype")


@checked
def pair(
    transformer: Transformer,
    protocol: Protocol = "shared",
    *,
    key: PRNGKeyArray | None = None,
    **changes: Any,
) -> Simulator:
    """Make the simulator that a Transformer is compared with, by one of three protocols.

    | `protocol`      | weights of the field            | embedding and head | then                                     |
    |-----------------|---------------------------------|--------------------|------------------------------------------|
    | `"shared"`      | the Transformer's               | the Transformer's  | only the step is refined                 |
    | `"distilled"`   | its own, from `key`             | the Transformer's  | fitted by `pdejax.training.Distillation` |
    | `"independent"` | its own, from `key`             | its own            | trained on the task from its own seed    |

    - `changes`: arguments of [`SimulatorConfig`][pdejax.models.SimulatorConfig] and of its architecture, such as `steps` over
      the whole depth (a multiple of the layers; default one per layer), `solver`, `diffusion` or `stabilization`.

    A `"shared"` simulator with the default solver and one step per layer computes what the Transformer does, to rounding; more
    steps, or another solver, converge to the network of continuous depth with the same weights. It can change only `steps`,
    `solver`, `weights` (`"linear"` or `"cubic"` make the layers' weights knots), `implementation` and `dtype`. A
    `"distilled"` one must keep `dim`, `vocab` and whatever else makes up the two ends.

    Raises `ValueError` or `TypeError` for other protocols, a missing or a needless `key`, what the config refuses, and for a
    shared post-LN Transformer with a solver that has no substeps, or with weights that are not piecewise constant: its norms
    belong to the two substeps of a layer.
    """
    instance("pair", "transformer", transformer, Transformer)
    choice("pair", "protocol", protocol, get_args(Protocol))
    if protocol == "shared":
        if key is not None:
            raise ValueError("pair: key has no use in protocol='shared', which draws no weights; leave it out.")
        return _shared(transformer, changes)
    if key is None:
        raise ValueError(f"pair: protocol={protocol!r} draws weights of its own: give key=jax.random.key(seed).")
    if protocol == "distilled":
        return _distilled(transformer, key, changes)
    return Simulator(SimulatorConfig.of(transformer.architecture, **changes), key=key)


def _shared(transformer: Transformer, changes: dict[str, Any]) -> Simulator:
    """`lift` as a model."""
    unknown = sorted(set(changes) - set(_REFINEMENTS))
    if unknown:
        raise ValueError(
            f"pair: {unknown}: a simulator that shares the Transformer's weights can change only {', '.join(_REFINEMENTS)}; for "
            "another field use protocol='distilled' or 'independent'."
        )
    if changes.get("weights") == "shared":
        raise ValueError(
            "pair: weights='shared' is one set of weights, the Transformer has one per layer; use 'linear' or 'cubic'."
        )
    config = SimulatorConfig.of(transformer.architecture, **changes)
    substeps = config.solver in ("lietrotter", "strang", "macaron")
    if config.stabilization == "retraction" and not (substeps and config.weights == "constant"):
        raise ValueError(
            f"pair: a post-LN Transformer normalizes after each of the two substeps of a layer, which solver={config.solver!r} "
            f"with weights={config.weights!r} does not have; use 'lietrotter', 'strang' or 'macaron' and weights='constant'."
        )
    return Simulator.from_parameters(config, _weights(transformer))


def _distilled(transformer: Transformer, key: PRNGKeyArray, changes: dict[str, Any]) -> Simulator:
    """The Transformer's embedding and head, so that both start from the same field and are read the same way."""
    normed = {"head_norm": transformer.final_norm is not None}
    model = Simulator(SimulatorConfig.of(transformer.architecture, **normed | changes), key=key)
    theirs = {k: v for k, v in _weights(transformer).items() if k.split("/")[0] in _ENDS}
    ours = {k: v for k, v in model.parameters().items() if k.split("/")[0] in _ENDS}
    same = model.architecture.embedding_scale == transformer.architecture.embedding_scale
    if not same or {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise ValueError(
            f"pair: changes {sorted(changes)} give the simulator another embedding or head than the Transformer's; keep them, or "
            "use protocol='independent'."
        )
    return with_parameters(model, model.parameters() | theirs)


@checked
def untrained_field(model: Any, key: PRNGKeyArray) -> Any:
    """Return a simulator of the same kind with a fresh field between the same embedding and head: what a fit is compared with."""
    fresh = type(model)(model.config, key=key)
    return eqx.tree_at(lambda m: (m.embedding, m.readout), fresh, (model.embedding, model.readout))


def _weights(transformer: Transformer) -> dict[str, Array]:
    """The Transformer's parameters by the names they have in a `Simulator`."""
    architecture, given, layers = transformer.architecture, transformer.parameters(), transformer.layer_weights()
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
    post = architecture.norm == "post"
    for term, names, norm in (
        ("interaction", ("wq", "wk", "wv", "wo", "bq", "bk", "bv", "bo"), "norm1"),
        ("reaction", ("w1", "b1", "w2", "b2"), "norm2"),
    ):
        found |= {f"stacked/{term}/{name}": layers[name] for name in names}
        inside = f"stacked/retractions/{norm[-1] == '2':d}" if post else f"stacked/{term}/norm"
        for place, weights in ((inside, layers[norm]), (f"stacked/{term}/norm_out", layers[f"{norm}_out"])):
            found |= {f"{place}/{name}": value for name, value in (weights or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


@checked
def lift(model: Transformer) -> Discretization:
    r"""Give the discretization that a Transformer is: its field with the model's weights, its solver, one step per layer.

    Depth is measured in layers: t ∈ [0, L], or [0, L·s] for a gated residual of scale s (whose step *is* s).
    `simulate(lift(model), model.embed(tokens))` returns the model's hidden states to rounding:

    | block | field | solver, one step per layer |
    |---|---|---|
    | pre-LN, sequential | A = Attn∘LN, R = FFN∘LN, no leak | Lie–Trotter, one Euler substep per term |
    | parallel (GPT-J, PaLM) | the same A + R | Euler |
    | Macaron | the same A, R | Strang with Euler substeps, R taking the halves |
    | peri-LN | A = LN∘Attn∘LN, R = LN∘FFN∘LN | Lie–Trotter with Euler substeps |
    | post-LN | A = Attn, R = FFN | Lie–Trotter with LN as retraction after each substep |
    | non-residual `u ← Attn(u)` | A with leak −u | Lie–Trotter with Euler, h = 1 |
    | gated `(1−s)u + s·Attn(u)` | A with leak −u | Lie–Trotter with Euler, h = s |
    | looped, `injection="add"` | the same and a source e in the layer that begins a pass | e first, then the same |

    So a "simulator without residual connections" (v2 Thm 3.4) is the leaky field at h = 1: refining h makes it residual.
    The weights are piecewise constant in depth; refining the step converges to the ODE with those weights, which is not
    the network itself but its continuous-depth sibling.

    With `injection="add"` the field depends on the input: e is the state that the loop begins with, after p layers of a prelude
    or none. `simulate` finds it by itself, as does what else begins with a state; for a look at one layer or at the field give
    `lift(model).given(model.hidden_states(tokens, mask)[p])`.

    Raises `TypeError` for anything but a `Transformer`.
    """
    instance(
        "lift",
        "model",
        model,
        Transformer,
        "a Simulator has model.discretization(n)",
    )
    return functional(model).discretization()


def functional(model: Any) -> Any:
    """A Transformer as the simulator with its weights, in their type for any type of state; other models as they are."""
    return pair(model, dtype=model.architecture.param_dtype) if isinstance(model, Transformer) else model
