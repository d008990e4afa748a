"""Every public function and class, every parameter, a table of wrong values: words that name both, before anything compiles."""

import collections.abc
import importlib
import inspect
import json
import os
import pathlib
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj

NAMES = json.loads((pathlib.Path(__file__).parent / "public_names.json").read_text())
KEY = jax.random.key(0)

# Records that the library fills and users read: their fields are not arguments.
RECORDS = ("pdejax.plot", "pdejax.runs", "pdejax.studies.papers", "pdejax.studies.claims")
FILLED = ("Trajectory", "Stats", "Observed", "Batch", "StoredStates")
# (callable, parameter): why a wrong value is taken there.
ACCEPTED = {
    (config, name): "None takes the value of the Architecture or of the paper"
    for config in ("SimulatorConfig", "MultilayerSimulatorConfig")
    for name in ("t1", "steps", "leak", "strength", "head_norm")
} | {
    ("stability_factor", "z"): "complex numbers of any shape",
    ("divergence", "u"): "complex fields, too",
}

WRONG = {
    "integer": ("1", 2.5, 1j, None, True, [1], float("nan")),
    "number": ("1", 1j, None, True, float("nan"), object()),
    "numbers": ("text", 1j, None, True, object(), jnp.ones((2,), complex)),
    "switch": ("no", 1, 0.5, None),
    "text": (1, 2.5, True, b"bytes"),
    "choice": ("nonsense", 3, 2.5),
    "key": (7, "key", None, jnp.zeros(3), jnp.zeros(2)),
    "array": ("text", None, object(), jnp.ones((2,) * 7, complex), jnp.ones((2,) * 7)),
    "booleans": ("text", object(), 0.5, jnp.ones(2)),
    "function": (3, "name", 2.5, int),
    "sequence": (3, object(), 2.5),
    "mapping": (3, "text", [1]),
    "path": (3, 2.5, object(), ""),
    "object": ("model", 3, object(), int),
}


def callables():
    """(name, object) of every public function and class whose arguments users give."""
    seen = set()
    for package, names in sorted(NAMES.items()):
        module = importlib.import_module(package)
        for name in names:
            found = getattr(module, name, None)
            if (
                not callable(found)
                or name == "attach"
                or id(found) in seen
                or not str(getattr(found, "__module__", "")).startswith("pdejax")
            ):
                continue
            seen.add(id(found))
            if inspect.isclass(found) and (package.startswith(RECORDS) or is_record(found) or name in FILLED):
                continue
            yield name, found


def is_record(cls) -> bool:
    from pdejax._figure import AbstractRecord

    if issubclass(cls, Exception | AbstractRecord) or inspect.isabstract(cls):
        return True
    code = getattr(inspect.unwrap(cls.__init__), "__code__", None)
    made = code is None or code.co_filename == "<string>"
    return made and cls.__module__.startswith(
        ("pdejax.analysis", "pdejax.training", "pdejax.studies", "pdejax.solvers")
    )


def category(hint) -> str | None:
    """What an annotation without alternatives stands for in the table of wrong values."""
    origin = typing.get_origin(hint)
    if hint in (type(None), None):
        return "nothing"
    plain = {bool: "switch", int: "integer", float: "number", str: "text", np.number: "number"}
    if hint in plain:
        return plain[hint]
    if origin is typing.Literal:
        return "choice"
    if hasattr(hint, "dim_str"):
        kinds = str(hint.dtypes)
        if "key" in kinds or (hint.dim_str in ("2", "4") and "uint32" in kinds):
            return "key"
        if "bool" in kinds:
            return "booleans"
        return "number" if hint.dim_str == "" else "array"
    if hint in (jax.Array, np.ndarray):
        return "numbers"
    if inspect.isclass(origin or hint) and issubclass(origin or hint, os.PathLike):
        return "path"
    table = {
        collections.abc.Callable: "function",
        collections.abc.Sequence: "sequence",
        tuple: "sequence",
        collections.abc.Mapping: "mapping",
        dict: "mapping",
    }
    if (origin or hint) in table:
        return table[origin or hint]
    return (
        "object"
        if inspect.isclass(hint) and hint.__module__.startswith(("pdejax", "diffrax", "flax", "optax"))
        else None
    )


def branches(hint):
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(hint) for one in branches(part)]
    return [hint]


def wrong_values(hint) -> list:
    """Values that no alternative of the annotation takes."""
    parts = branches(hint)
    if complex in parts:  # jax.typing.ArrayLike: real numbers
        parts = [one for one in parts if one not in (bool, complex, np.bool, np.number, int, float, np.ndarray)]
    kinds = {category(one) for one in parts}
    if None in kinds or typing.Any in parts:
        return []
    if "path" in kinds:
        kinds.discard("text")
    tables = [WRONG[kind] for kind in kinds if kind != "nothing"]
    if not tables:
        return []
    fits = {
        "text": lambda v: isinstance(v, str),
        "choice": lambda v: False,
        "nothing": lambda v: v is None,
        "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v == v,
        "numbers": lambda v: (isinstance(v, int | float) and not isinstance(v, bool) and v == v) or real(v),
        "array": lambda v: real(v) or isinstance(v, list),
        "booleans": lambda v: isinstance(v, bool | np.bool_),
        "switch": lambda v: isinstance(v, bool),
        "function": lambda v: callable(v) and not inspect.isclass(v),
        "sequence": lambda v: isinstance(v, list) or real(v),
        "mapping": lambda v: isinstance(v, dict),
        "key": lambda v: False,
        "path": lambda v: isinstance(v, str) and v != "",
        "object": lambda v: False,
    }
    return (
        [v for v in tables[0] if not any(fits[kind](v) for kind in kinds)]
        if len(tables) == 1
        else [v for table in tables for v in table if not any(fits[kind](v) for kind in kinds)]
    )


def real(value) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def right_value(hint):
    """Something of the annotated type, for the arguments beside the wrong one: the body is never reached."""
    hint = branches(hint)[0]
    kind = category(hint)
    if kind == "object":
        base = tuple if issubclass(hint, tuple) else object
        return base.__new__(concrete(hint))
    if kind == "choice":
        return typing.get_args(hint)[0]
    if kind in ("array", "booleans"):
        axes = [axis for axis in hint.dim_str.split() if axis != "..." and not axis.startswith("*")]
        return np.ones([2] * len(axes), bool if kind == "booleans" else float)
    if kind == "sequence":
        inner = [one for one in typing.get_args(hint) if one is not Ellipsis]
        count = len(inner) if typing.get_origin(hint) is tuple and Ellipsis not in typing.get_args(hint) else 1
        return [right_value(inner[i]) if inner else 1 for i in range(count)]
    values = {
        "switch": True,
        "integer": 1,
        "number": 0.5,
        "numbers": np.ones(2),
        "text": "text",
        "key": KEY,
        "path": "file",
    }
    return {"function": lambda *_: None, "mapping": {}, "nothing": None, **values}.get(str(kind))


def concrete(cls):
    """The class or one below it that can be made."""
    while inspect.isabstract(cls):
        cls = cls.__subclasses__()[0]
    return cls


def cases():
    for name, found in callables():
        function = found.__init__ if inspect.isclass(found) else found
        try:
            hints = typing.get_type_hints(function)
        except NameError:
            continue
        parameters = {key: one for key, one in inspect.signature(function).parameters.items() if key != "self"}
        for key, parameter in parameters.items():
            plain = parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            if key in hints and plain:
                for value in wrong_values(hints[key]):
                    yield name, found, key, value, hints, parameters


def test_every_wrong_argument_is_refused_by_name(monkeypatch):
    from jax._src import compiler

    def refuse(*args, **kwargs):
        raise AssertionError("compiled before its arguments were checked")

    every = list(cases())
    monkeypatch.setattr(compiler, "backend_compile_and_load", refuse)
    silent, tried = [], 0
    for name, found, key, value, hints, parameters in every:
        if (name, key) in ACCEPTED:
            continue
        given = {
            other: right_value(hints[other])
            for other, one in parameters.items()
            if other != key
            and one.default is inspect.Parameter.empty
            and other in hints
            and one.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        }
        positional = [k for k, one in parameters.items() if one.kind is inspect.Parameter.POSITIONAL_ONLY]
        tried += 1
        try:
            arguments = {**given, key: value}
            found(*(arguments.pop(k) for k in positional), **arguments)
        except (TypeError, ValueError) as error:
            text = str(error)
            if name in text.split(":")[0] and key in text:
                continue
            silent.append((name, key, repr(value)[:30], f"{type(error).__name__}: {text[:90]}"))
        except BaseException as error:
            silent.append((name, key, repr(value)[:30], f"{type(error).__name__}: {str(error)[:90]}"))
        else:
            silent.append((name, key, repr(value)[:30], "accepted"))
    report = "\n".join(" | ".join(row) for row in silent)
    assert tried > 3000
    assert not silent, f"{len(silent)} of {tried}:\n{report}"


def test_every_unknown_name_is_refused_with_what_is_allowed():
    """A parameter with a letter too many: the function, the names that it takes, and the one that was meant."""
    silent, tried = [], 0
    for name, found in callables():
        parameters = {key: one for key, one in inspect.signature(found).parameters.items() if key != "self"}
        kinds = {one.kind for one in parameters.values()}
        named = [key for key, one in parameters.items() if one.kind is not inspect.Parameter.POSITIONAL_ONLY]
        if inspect.Parameter.VAR_KEYWORD in kinds or not named:
            continue
        tried += 1
        try:
            found(**{f"{named[-1]}z": 1})
            silent.append((name, "no error"))
        except TypeError as error:
            text = str(error)
            if not (
                text.startswith(f"{name}: ")
                and all(part in text for part in ("it takes", f"{named[-1]}z", f"did you mean {named[-1]}?"))
            ):
                silent.append((name, text[:120]))
    assert not silent, silent
    assert tried > 200


def test_what_is_no_name_of_ones_own_is_not_meant():
    """`self` is meant by nobody, and where any name may be given it is not the name that is wrong."""
    with pytest.raises(TypeError) as refused:
        pj.Architecture(sel=1)  # pyright: ignore[reportCallIssue]
    assert "unexpected keyword argument 'sel'" in str(refused.value) and "did you mean" not in str(refused.value)
    with pytest.raises(TypeError, match=r"^pair: missing a required argument: 'transformer'"):
        pj.pair(layers=2)  # pyright: ignore[reportCallIssue]
