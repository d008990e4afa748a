"""The main job: measure the continuum limit of a Transformer on real input.

    python benchmarks/convergence.py --out out
    python benchmarks/convergence.py --steps 4 8 16 32 --solvers euler rk4
    python benchmarks/convergence.py --dataset digits --dt 0.5 0.25 0.125

The same as `pdejax convergence`; the study itself is `pdejax.studies.convergence(config)`.
"""

import sys

from pdejax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convergence", *sys.argv[1:]]))
