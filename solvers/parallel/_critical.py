"""How long a parallel solve takes in steps that wait for one another."""

from typing import Literal

from pdejax._arguments import checked

Relaxation = Literal["F", "FCF"]


@checked
def critical_path(
    count: int, *, iterations: int, coarsening: int, levels: int = 2, relaxation: Relaxation = "FCF"
) -> int:
    r"""Count the steps that must follow one another in `iterations` cycles of `mgrit` on `count` steps, with one device a chunk.

    A cycle relaxes each level by one (`"F"`) or two (`"FCF"`) sweeps of m = `coarsening` steps, takes one coarse step everywhere
    for the right-hand side, solves the coarsest level one step after another, and sweeps once more on the way up. Stepping
    serially takes `count`. Communication is not counted.

    Raises `ValueError` unless m ≥ 2, levels ≥ 2, iterations ≥ 0, and m^(levels − 1) divides `count`.
    """
    m = coarsening
    least = {"count": (count, 1), "iterations": (iterations, 0), "coarsening": (coarsening, 2), "levels": (levels, 2)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"critical_path: {name}={value} must be at least {bound}.")
    if count % m ** (levels - 1):
        raise ValueError(
            f"critical_path: coarsening={m} on {levels} levels needs steps in multiples of {m ** (levels - 1)}; got {count}."
        )
    sweeps = 1 if relaxation == "F" else 2
    coarsest = count // m ** (levels - 1)
    cycle = (levels - 1) * (sweeps * m + 1) + coarsest + (levels - 2) * m
    return coarsest + (levels - 2) * m + iterations * cycle + m
