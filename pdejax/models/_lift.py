"""A Transformer as (vector field, solver, step): what is behind the table "block = field + solver + step"."""

from collections.abc import Mapping
from typing import Any

import diffrax
import equinox as eqx
import jax

from pdejax._depth import DepthVarying, LayerStack
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax.models._transformer import Transformer
from pdejax.solvers import Euler, LieTrotter, Retract, Strang
from pdejax.terms import Attention, FeedForward, LayerNorm, RMSNorm


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

    So a "simulator without residual connections" (v2 Thm 3.4) is the leaky field at h = 1: refining h makes it residual.
    The weights are piecewise constant in depth; refining the step converges to the ODE with those weights, which is not
    the network itself but its continuous-depth sibling.
    """
    field = _field(model)
    return Discretization(field, _native_solver(model), t1=field.t1, steps=field.size)


def _field(model: Transformer) -> DepthVarying:
    config = model.architecture
    leak = config.residual in ("gated", "none")
    strength = config.residual_scale if config.residual == "add" else 1.0
    inside = config.norm in ("pre", "peri")
    weights = model.layer_weights()

    def layer(w: Mapping[str, Any]) -> MasterEquation:
        def norm(name, wanted):
            return _norm(config, w[name]) if wanted else None

        attention = Attention(
            config.dim,
            config.heads,
            key=jax.random.key(0),
            leak=leak,
            strength=strength,
            causal=config.causal,
            rotary=config.rotary_theta if config.positions == "rotary" else None,
            bias=config.bias,
            norm=norm("norm1", inside),
            norm_out=norm("norm1_out", config.norm == "peri"),
        )
        reaction = FeedForward(
            config.dim,
            config.ffn,
            key=jax.random.key(0),
            activation=config.activation,
            leak=leak,
            strength=strength,
            norm=norm("norm2", inside),
            norm_out=norm("norm2_out", config.norm == "peri"),
        )
        names = ["wq", "wk", "wv", "wo"] + (["bq", "bk", "bv", "bo"] if config.bias else [])
        attention = _replace(attention, {name: w[name] for name in names})
        reaction = _replace(reaction, {name: w[name] for name in ("w1", "b1", "w2", "b2")})
        return MasterEquation(interaction=attention, reaction=reaction)

    return DepthVarying(eqx.filter_jit(eqx.filter_vmap(layer))(weights), config.layers * _step(config), "constant")


def _native_solver(model: Transformer) -> diffrax.AbstractSolver:
    """The solver that, with one step per layer, makes the field the model: see the table in `lift`."""
    config = model.architecture
    weights = model.layer_weights()

    def substep(name) -> diffrax.AbstractSolver:
        if config.norm != "post":
            return Euler()
        retraction = eqx.filter_vmap(lambda w: _norm(config, w))(weights[name])
        return Retract(Euler(), LayerStack(retraction))

    if config.block == "parallel":
        return substep("norm1")
    first, second = substep("norm1"), substep("norm2")
    return Strang((first, second)) if config.block == "macaron" else LieTrotter((first, second))


def _step(config) -> float:
    return config.residual_scale if config.residual == "gated" else 1.0


def _norm(config, w: Mapping[str, Any]) -> LayerNorm | RMSNorm:
    if config.norm_type == "rmsnorm":
        return _replace(RMSNorm(config.dim, eps=config.norm_eps), {"scale": w["scale"]})
    return _replace(LayerNorm(config.dim, eps=config.norm_eps), {"scale": w["scale"], "bias": w["bias"]})


def _replace(module, leaves: Mapping[str, Any]):
    names = list(leaves)
    return eqx.tree_at(
        lambda m: [getattr(m, name) for name in names],
        module,
        [leaves[name] for name in names],
        is_leaf=lambda x: x is None,
    )
