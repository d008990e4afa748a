"""What the audit measures, part by part: arrays of numbers by sequence, for the network and for its nulls."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._figure import Figure
from pdejax._step_maps import Flow
from pdejax.analysis.depth import (
    branch_sizes,
    layer_field,
    layer_surgery,
    matched_null,
    refine_layers,
    run_layers,
    shuffle_layers,
)
from pdejax.analysis.depth._nulls import branch_ratios, drawn_ends
from pdejax.analysis.depth._surgery import relative_move
from pdejax.analysis.jacobian import ftle, layer_jacobian, lyapunov_exponents
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.jacobian._systems import model_maps, shuffled_on_host
from pdejax.analysis.operators import identify_operators
from pdejax.analysis.spectra import weights_in_depth
from pdejax.analysis.spectra._depth import without_weights
from pdejax.analysis.tokens import collapse_rate, token_clustering
from pdejax.models import Transformer
from pdejax.runs._parts import Parts, release_memory
from pdejax.solvers._retract import retractions
from pdejax.studies.audit._config import AuditConfig
from pdejax.studies.audit._found import DRAWS
from pdejax.studies.audit._subject import Subject, load_subject, name_of
from pdejax.studies.study import Evidence
from pdejax.terms import FieldArgs

NULLS = ("untrained", "layers shuffled", "weights shuffled")
SCHEMES = ("euler", "heun", "rk4")
WORK = 2e13  # operations on them all, some minutes on a CPU
LARGE = 5e7  # numbers of a network beside which compiled programs are not kept in memory, but read again from `out`
RESAMPLES = 200
PASSES = 10  # through all layers of a network that is one layer, in search of a fixed point
ITERATIONS = 24  # of Golub–Kahan for each layer
TOKEN_FIGURES = ("cosine", "effective_rank", "residual", "clusters")


def measure(config: AuditConfig, seed: int, parts: Parts) -> Evidence:
    """Measure every section for the network, then for each null, whose layers take the place of the network's in memory."""
    subject = load_subject(config)
    release_memory()  # what reading a checkpoint leaves behind is as large as a part of it
    net, key = subject.network, jax.random.key(seed)
    found: dict[str, Any] = {"subject": parts.get("subject", lambda: facts(config, subject))}
    say, large = parts.say, found["subject"]["numbers"] > LARGE

    def arrays(name: str, make: Callable[[], dict[str, Any]]) -> None:
        say(name)
        found[name] = parts.arrays(name.replace(" ", "-"), make)
        release_memory(programs=large)

    n = subject.u0.shape[1]
    # The network itself as its nulls are, so that they share compiled programs.
    field = layer_field(net, length=n)
    arrays("identity", lambda: identity(subject, field))
    found["refinement"] = {}
    for scheme in ("native", *SCHEMES):
        say(f"refinement, {scheme}")
        part = parts.arrays(f"refinement-{scheme}", lambda scheme=scheme: refinement(config, subject, field, scheme))
        found["refinement"] |= part
    arrays("windows", lambda: windows(config, subject, field))
    arrays("weights", lambda: weights(subject, key))
    arrays("surgery", lambda: surgery(subject, say))
    arrays("jacobians", lambda: jacobians(config, subject, field, key, say))
    states, mask = _states(subject, field), subject.mask
    arrays("tokens", lambda: tokens(states, None, mask, key))
    arrays("operators", lambda: operators(subject, net))
    one, held = "autonomous" in found["weights"], [subject]
    del field, net, subject  # the first null lets go of what is held
    for name, null in _nulls(config, held, key, one):
        if null is None:
            continue
        if name != NULLS[0]:
            arrays(f"refinement {name}", lambda null=null: refined(*null(), 1))
            continue
        arrays("draws", lambda: draws(*_layers_of(held[0]), key, found["subject"]["draws"], say))
        arrays(f"refinement {name}", lambda null=null: refined(*null(), min(2, config.halvings)))
        arrays(f"windows {name}", lambda null=null: windows(config, *null()))
        arrays(f"jacobians {name}", lambda null=null: jacobians(config, *null(), key, say))
        arrays(f"tokens {name}", lambda null=null: tokens(states, _states(*null()), mask, key))
        arrays(f"operators {name}", lambda null=null: operators(*null()))
    return found


def _states(subject: Subject, system: Any) -> Array:
    return run_layers(system, subject.u0, mask=subject.mask)


def _layers_of(subject: Subject) -> tuple[Subject, Any]:
    return subject, layer_field(subject.network, length=subject.u0.shape[1])


def _nulls(
    config: AuditConfig, held: list[Subject], key: Any, one: bool
) -> Iterator[tuple[str, Callable[[], tuple[Subject, Any]] | None]]:
    """Each null as a function that makes it once, with the subject whose layers it replaces, or None where the network has no
    weight matrices, or, if it is `one` layer, no other order.

    A null is a copy of the layers: the network's own are dropped when it is there, and read again for the next one."""
    d, n = held[0].network.discretization, held[0].u0.shape[1]
    axes = 3 if d.layers else 2  # one of them that of layers
    matrices = any(x.ndim >= axes for x in jax.tree.leaves(eqx.filter(d.field, eqx.is_inexact_array)))
    del d
    makes = (
        (NULLS[0], matrices, lambda s: matched_null(s.network, s.u0, mask=s.mask, key=_draw_key(key, 0))),
        (NULLS[1], not one, lambda s: shuffle_layers(s.network, key=jax.random.fold_in(key, 2), length=n)),
        (
            NULLS[2],
            matrices,
            lambda s: shuffled_on_host(layer_field(s.network, length=n), key=jax.random.fold_in(key, 3)),
        ),
    )
    for name, there, make in makes:
        kept: list[tuple[Subject, Any]] = []

        def once(make=make, kept=kept):
            if not kept:
                subject = held.pop() if held else load_subject(config)
                null = make(subject)
                network = subject.network.replace(discretization=null)
                kept.append((dataclasses.replace(subject, network=network, model=None), null))
                del subject
                release_memory()
            return kept[0]

        yield name, once if there else None
        kept.clear()


def draws(subject: Subject, field: Any, key: Any, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Moves of the last state at half the step of `count` untrained networks, `half (count, b)`: one program, other weights."""
    ratios, half = branch_ratios(field, subject.u0, subject.mask), []
    for draw in range(count):
        say(f"untrained network {draw + 1} of {count}")
        whole, finer = drawn_ends(field, ratios, subject.u0, subject.mask, _draw_key(key, draw))
        half.append(relative_move(finer, whole, subject.mask))
    return {"half": np.asarray(half, float)}


def _draw_key(key: Any, draw: int) -> Any:
    return jax.random.fold_in(jax.random.fold_in(key, 1), draw)


def affordable(config: AuditConfig, subject: Subject) -> int:
    """How many untrained networks: as asked for, else `DRAWS`, fewer where they would cost more than `WORK`. Each is three runs
    of two operations per number and token."""
    if config.draws is not None:
        return config.draws
    field = eqx.filter(subject.network.discretization.field, eqx.is_inexact_array)
    numbers = sum(x.size for x in jax.tree.leaves(field))
    return max(1, min(DRAWS, int(WORK / (6.0 * max(numbers, 1) * subject.mask.size))))


def facts(config: AuditConfig, subject: Subject) -> dict[str, Any]:
    """What was audited, in words and numbers."""
    net, d = subject.network, subject.network.discretization
    stacked = getattr(d.field, "stacked", d.field)
    inside = any(getattr(term, "norm", None) is not None for term in getattr(stacked, "terms", ()))
    post = bool(retractions(d.solver))
    return {
        "name": name_of(config.network),
        "network": repr(net),
        "layers": net.layers,
        "dim": int(subject.u0.shape[-1]),
        "numbers": sum(x.size for x in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))),
        "sequences": int(subject.u0.shape[0]),
        "tokens": np.sum(np.asarray(subject.mask), axis=1).tolist(),
        "draws": affordable(config, subject),
        "task": subject.task,
        "data": subject.data,
        "normalization": "after the step" if post else "inside the branch" if inside else "none",
    }


def identity(subject: Subject, field: Any) -> dict[str, Any]:
    """How far apart the layers run one by one are from the network's own states, from those of the model it was made of, and
    from Euler steps of the layers' field: largest relative differences over layers, by sequence.

    Raises `ValueError` where the network's own loss is not finite."""
    net, found = subject.network, {"layers": [], "model": [], "layer field": []}
    states = run_layers(net, subject.u0, mask=subject.mask)
    _finite_loss(subject, states[-1])
    steps = run_layers(field, subject.u0, mask=subject.mask)
    for i in range(min(2, len(subject.inputs))):
        real, ours = subject.mask[i], states[:, i]
        own = net.hidden_states(subject.inputs[i], real).astype(ours.dtype)
        found["layers"].append(_apart(ours, own, real))
        found["layer field"].append(_apart(steps[:, i], own, real))
        if isinstance(subject.model, Transformer):
            theirs = subject.model.hidden_states(subject.inputs[i], real).astype(ours.dtype)
            found["model"].append(_apart(own, theirs, real))
    return {name: np.asarray(values, float) for name, values in found.items()}


def _finite_loss(subject: Subject, end: Any) -> None:
    loss = subject.read(end[None], end).get("loss", np.zeros((1, 0)))[0]
    wrong = np.flatnonzero(~np.isfinite(loss)).tolist()
    if wrong:
        raise ValueError(
            f"audit: the network's own loss is not finite on {len(wrong)} of {loss.size} sequences, {wrong[:8]} among them; look "
            "at its weights and at these sequences, or take another precision."
        )


def _apart(a: Any, b: Any, real: Any) -> float:
    """Largest relative difference of a layer's states over real tokens."""
    return float(jnp.max(relative_move(a, b, jnp.broadcast_to(real, a.shape[:2]))))


def refinement(config: AuditConfig, subject: Subject, field: Any, scheme: str) -> dict[str, Any]:
    """One scheme at h, h/2, …: the network's own, substeps and normalizations included, or another for the field of its
    layers, whose moves are from the field's own last state (Euler at h)."""
    if scheme == "native":
        return _moves("native", subject, subject.network, _factors(config.halvings), None)
    if scheme == "euler":
        return refined(subject, field, config.halvings)
    # As many halvings as cost about what Euler's do, and as an order needs.
    factors = _factors(max(config.halvings - 1, 1))
    return _moves(scheme, subject, field.replace(solver=scheme), factors, _end(subject, field))


def refined(subject: Subject, field: Any, halvings: int) -> dict[str, Any]:
    """Euler steps of a field at h, h/2, …, and the sizes of its layers' branches."""
    sizes = {"sizes": np.asarray(branch_sizes(field, subject.u0, mask=subject.mask))}
    return sizes | _moves("euler", subject, field, _factors(halvings), None)


def _factors(halvings: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(halvings + 1))


def _end(subject: Subject, field: Any) -> Any:
    return refine_layers(field, subject.u0, factors=(1,), mask=subject.mask)[0]


def _moves(name: str, subject: Subject, system: Any, factors: tuple[int, ...], end: Any) -> dict[str, Any]:
    """Moves from `end`, by default from the first of the last states, and readings."""
    ends = refine_layers(system, subject.u0, factors=factors, mask=subject.mask)
    end = ends[0] if end is None else end
    found = {
        f"{name}/factors": np.asarray(factors),
        f"{name}/moves": np.stack([relative_move(u, end, subject.mask) for u in ends]),
        f"{name}/steps": np.stack([relative_move(a, b, subject.mask) for a, b in itertools.pairwise(ends)]),
    }
    return found | {f"{name}/{k}": v for k, v in subject.read(ends, end).items()}


def windows(config: AuditConfig, subject: Subject, field: Any) -> dict[str, Any]:
    """Half the step in every window of neighbouring layers, in the first and the last layer, and in all."""
    count = field.field.size
    width = min(config.window, count - 1)
    spans = [(a, a + width) for a in range(count - width + 1)] + [(0, 1), (count - 1, count), (0, count)]
    states = run_layers(field, subject.u0, mask=subject.mask)
    places = np.arange(count)
    ends = []
    for begin, end in spans:
        steps = np.where(places < begin, 0, np.where(places < end, 2, 1))
        ends.append(run_layers(field, states[begin], steps=steps, mask=subject.mask)[-1])
    found = {"spans": np.asarray(spans), "moves": np.stack([relative_move(u, states[-1], subject.mask) for u in ends])}
    # The network's own reading last.
    read = subject.read(jnp.stack([*ends, states[-1]]), states[-1])
    return found | {k: v[:-1] for k, v in read.items()} | {f"own {k}": v[-1] for k, v in read.items()}


def weights(subject: Subject, key: Any) -> dict[str, Any]:
    """Weights as a function of depth, or why there is nothing to compare."""
    why = without_weights(subject.network)
    if why and _autonomous(subject, key):
        return {"autonomous": np.asarray(True), "applications": _applications(subject)}
    if why:
        return {"absent": np.asarray(why)}
    found = weights_in_depth(subject.network, dim=int(subject.u0.shape[-1]), key=key)
    null = found.adjacent.nulls["layers shuffled"]
    return {
        **{
            name: getattr(found, name)
            for name in ("distance", "correlation", "overlap", "independent", "p_value", "detectable")
        },
        "adjacent": np.asarray([found.adjacent.value, found.adjacent.low, found.adjacent.high]),
        "adjacent null": np.asarray([null.value, null.low, null.high]),
        "holder": np.asarray([found.holder.value, found.holder.low, found.holder.high]),
        "names": np.asarray(found.names),
    }


def _autonomous(subject: Subject, key: Any) -> bool:
    """Whether a field with matrices is one function at all depths, by its values on a random state, of which none is special."""
    d, args = subject.network.discretization, FieldArgs(mask=subject.mask[0])
    if all(leaf.ndim < 2 for leaf in jax.tree.leaves(eqx.filter(d.field, eqx.is_inexact_array))):
        return False
    # Beginning and middle of every layer.
    places = np.linspace(float(d.t0), float(d.t1), 2 * subject.network.layers + 1)[:-1]
    u = jax.random.normal(key, subject.u0[0].shape, subject.u0.dtype)
    field = eqx.filter_jit(lambda t: d.field(t, u, args))
    first, *rest = (np.asarray(field(jnp.asarray(t, subject.u0.dtype))) for t in places)
    return all(np.array_equal(first, other) for other in rest)


def _applications(subject: Subject) -> np.ndarray:
    """Moves of the state by each further application of the one layer, relative, `(PASSES L, b)`: to 0 towards a fixed point."""
    u, moves = subject.u0, []
    for _ in range(PASSES):
        states = run_layers(subject.network, u, mask=subject.mask)
        moves += [relative_move(b, a, subject.mask) for a, b in itertools.pairwise(states)]
        u = states[-1]
    return np.asarray(moves, float)


def surgery(subject: Subject, say: Callable[[str], None]) -> dict[str, Any]:
    """Every layer left out, exchanged with the next, repeated."""
    found = layer_surgery(
        subject.network, subject.u0, loss=subject.loss, labels=subject.labels, mask=subject.mask, report=say
    )
    return {name: np.asarray(value) for name, value in vars(found).items() if value is not None}


def jacobians(
    config: AuditConfig, subject: Subject, system: Any, key: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    """Singular values by layer and of the whole map, exponents of the flow and of tokens, on a few short sequences. All rates
    are per layer, whatever the depth that a layer counts for."""
    rows: dict[str, list[Any]] = {}
    cut = min(config.tokens, subject.u0.shape[1])
    count = min(config.derivatives, subject.u0.shape[0])
    for i in range(count):
        u0, real = subject.u0[i, :cut], subject.mask[i, :cut]
        states = run_layers(system, u0, mask=real)
        layers = len(states) - 1
        span = float(system.t1 - system.t0) / layers  # the analyses' exponents are per unit depth
        found = []
        for l in range(layers):
            say(f"Jacobian of layer {l + 1} of {layers}, sequence {i + 1} of {count}")
            one = layer_jacobian(system, states[l], layer=l, mask=real)
            found.append(one.singular_values(key=jax.random.fold_in(key, l), iterations=ITERATIONS, probes=4))
        say("Jacobian of all layers, exponents")
        maps, u, mask = model_maps("audit", system, u0, real)
        whole = Jacobian(Flow(maps), u, mask).singular_values(key=key, iterations=ITERATIONS, probes=4)
        lyapunov = lyapunov_exponents(
            system, u0, k=min(config.exponents, int(jnp.sum(real)) * u0.shape[1]), mask=real, key=key
        )
        token = ftle(system, u0, mask=real, key=key, iterations=4)
        size = jnp.sqrt(jnp.sum(jnp.where(real[:, None], states, 0.0) ** 2, axis=(1, 2)))
        values = {
            "largest": [x.largest for x in found],
            "smallest": [x.smallest for x in found],
            "frobenius": [x.frobenius for x in found],
            "spectra": [x.values for x in found],
            "whole": [whole.largest, whole.smallest, whole.frobenius],
            "whole spectrum": whole.values,
            "exponents": span * np.asarray(lyapunov.exponents.value),
            "ftle": span * np.asarray(token.exponents),
            # What the growth of the state alone makes of relative changes: nothing of it is learned.
            "growth": jnp.log(size[-1] / size[0]) / layers,
            "sizes": size,
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(np.asarray(jnp.asarray(value), float))
    return {name: np.stack(value) for name, value in rows.items()}


def tokens(states: Array, other: Array | None, mask: Array, key: Any) -> dict[str, Any]:
    """Clusters, rank and collapse by depth; with states of a null beside, only the null's."""
    clusters = token_clustering(states, untrained=other, key=key, mask=mask, resamples=RESAMPLES)
    figures = {name: getattr(clusters, name) for name in TOKEN_FIGURES}
    if other is not None:
        return {name: _ends(figure.nulls[NULLS[0]]) for name, figure in figures.items()}
    gap = np.asarray(clusters.gap, float)
    return {name: _ends(figure) for name, figure in figures.items()} | {"gap": gap} | _collapse(gap)


def _ends(figure: Figure) -> np.ndarray:
    return np.stack([np.asarray(x) for x in (figure.value, figure.low, figure.high)])


def _collapse(gap: np.ndarray) -> dict[str, Any]:
    """Laws of 1 − mean cosine over depth, where there are depths enough to tell them apart."""
    depths = np.arange(len(gap), dtype=float)
    if len(gap) < 7 or not np.all(gap[1:] > 0):
        return {}
    late = (float(depths[1]) if len(gap) < 13 else float(depths[-1]) / 2, float(depths[-1]))
    fits = {law: collapse_rate(depths, gap, law=law, window=late, floor=0.0) for law in ("exponential", "algebraic")}
    return {
        "law": np.asarray(fits["exponential"].statement()),
        **{
            law: np.asarray([np.asarray(getattr(fit.rate, end), float) for end in ("value", "low", "high")])
            for law, fit in fits.items()
        },
    }


def operators(subject: Subject, system: Any) -> dict[str, Any]:
    """Operators that the layers are, and what they explain of held-out sequences."""
    found = identify_operators(system, subject.u0, mask=subject.mask)
    values = {name: getattr(found, name) for name in ("coefficients", "r2", "null", "rollout", "persistence")}
    return values | {"operators": np.asarray(found.operators), "groups": np.asarray(found.groups)}
