"""All numbers of the convergence study as one data set, each with its unit and what it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from pdejax.studies.numerics._convergence_config import ConvergenceConfig

# Of every variable its unit and what it is, in words. Errors are relative and have none.
_BY_STEPS = {
    "errors": ("1", "relative error at depth T, in the mesh norm"),
    "max_errors": ("1", "relative error at depth T, in the token-max norm"),
    "uniform_errors": ("1", "largest relative error over depth of the linear interpolant v2 (10)"),
    "dense_errors": ("1", "largest relative error over depth of the solver's dense output"),
    "one_sided_bounds": ("1", "bound of the relative error from the one-sided growth constant"),
    "v2_12_bounds": ("1", "bound of the relative error by v2 (12), from the Lipschitz constant"),
    "evaluations": ("1", "field evaluations; a splitting counts whole fields"),
    "seconds": ("s", "time of a solve, the best of three"),
}
_BY_SOLVER = {
    "order": ("1", "order of the error at depth T, extrapolated to small steps"),
    "ci": ("1", "half width of the interval of the order"),
    "expected": ("1", "order that is expected of the scheme on this field"),
    "uniform_order": ("1", "fitted order of the largest error over depth"),
}


def dataset(config: ConvergenceConfig, results: Mapping[str, Any]) -> xr.Dataset:
    """Return errors, bounds and costs over (solver, steps), the spatial order over tokens, regimes over (regime, layers)."""
    orders = results["orders"]
    counts = sorted({n for row in orders for n in row["steps"]})
    variables = {}
    for key, about in _BY_STEPS.items():
        table = {(i, n): v for i, row in enumerate(orders) for n, v in zip(row["steps"], row[key], strict=True)}
        variables[key] = _variable(("solver", "steps"), _filled((len(orders), counts), table), *about)
    for key, about in _BY_SOLVER.items():
        variables[key] = _variable(("solver",), _numbers([row[key] for row in orders]), *about)
    coordinates = {
        "solver": ("solver", [row["solver"] for row in orders], {"units": "1", "long_name": "scheme"}),
        "steps": ("steps", counts, {"units": "1", "long_name": "number of steps over the depth T"}),
    }
    for more, places in (_space(results["spatial"]), _regimes(results["regimes"])):
        variables |= more
        coordinates |= places
    attributes = {"study": "convergence", "depth": float(results["depth"]), "seed": int(config.seed)}
    if results.get("network"):
        attributes["network_layers"] = int(results["network"]["layers"])
        attributes["network_distance"] = float(results["network"]["distance"])
    return xr.Dataset(variables, coords=coordinates, attrs=attributes)


def _space(spatial: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spatial order q of v1 (24): differences between N and 2N tokens."""
    if spatial is None:
        return {}, {}
    tokens = list(spatial["tokens"])[:-1]
    what = "relative difference of the lowest cosine coefficients on N and on 2N tokens"
    variables = {
        "spatial_differences": _variable(("tokens",), _numbers(spatial["differences"]), "1", what),
        "spatial_order": _variable(
            (), _number(spatial["order"]), "1", "order q of the differences in 1/N, extrapolated"
        ),
        "spatial_ci": _variable((), _number(spatial["ci"]), "1", "half width of the interval of the spatial order"),
        "spatial_expected": _variable((), spatial["expected"], "1", "order of the second-order Laplacian"),
        "diffusivity": _variable(
            (), spatial["diffusivity"], "domain length squared per unit of depth", "diffusivity D"
        ),
    }
    return variables, {"tokens": ("tokens", tokens, {"units": "1", "long_name": "number of tokens N"})}


def _regimes(regimes: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What changes with the number of layers: distances or spreads, and their exponents."""
    if not regimes:
        return {}, {}
    layers = sorted({n for one in regimes for n in one["layers"]})
    table = {(i, n): v for i, one in enumerate(regimes) for n, v in zip(one["layers"], one["values"], strict=True)}
    what = "; ".join(f"{one['family']}: {one['quantity']}" for one in regimes)
    variables = {
        "regime_values": _variable(
            ("regime", "layers"), _filled((len(regimes), layers), table), "1", f"relative, {what}"
        ),
        "regime_exponent": _variable(
            ("regime",), _numbers([one["exponent"] for one in regimes]), "1", "exponent e of values ∝ L^e"
        ),
        "regime_ci": _variable(
            ("regime",),
            _numbers([one["ci"] for one in regimes]),
            "1",
            "half width of the interval of the exponent",
        ),
    }
    names = [one["family"] for one in regimes]
    return variables, {
        "regime": ("regime", names, {"units": "1", "long_name": "how weights are drawn and scaled"}),
        "layers": ("layers", layers, {"units": "1", "long_name": "number of layers L"}),
    }


def _variable(dims: tuple[str, ...], values: Any, units: str, name: str) -> tuple[Any, ...]:
    return dims, values, {"units": units, "long_name": name}


def _filled(shape: tuple[int, Sequence[int]], table: Mapping[tuple[int, int], Any]) -> np.ndarray:
    """(row, count) → value as an array, NaN where there is none."""
    rows, counts = shape
    return np.asarray([[_number(table.get((i, n))) for n in counts] for i in range(rows)], float).reshape(
        rows, len(counts)
    )


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.asarray([_number(value) for value in values], float)


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
