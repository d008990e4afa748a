"""Solvers that are parallel in depth: all steps of a discretization at once, by cycles on coarser grids or by Newton's method.

Each takes one-step maps `step(k, u) -> u` and gives the states that stepping one after another would give, up to a residual
that it states. None of them knows what a Transformer is; `pdejax.simulate_in_parallel` applies them to a discretization.
"""

from pdejax.solvers.parallel._critical import critical_path as critical_path
from pdejax.solvers.parallel._mgrit import mgrit as mgrit
from pdejax.solvers.parallel._newton import newton as newton
from pdejax.solvers.parallel._solution import ParallelSolution as ParallelSolution
