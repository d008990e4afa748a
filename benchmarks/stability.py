"""Stability: largest steps predicted and measured, and maps of what v1 (21) and the corrected bound say.

    python benchmarks/stability.py --out out
    python benchmarks/stability.py --families diffusion "softmax attention" --resolution 60
    python benchmarks/stability.py --solvers euler rk4 --families

The same as `pdejax stability`; the study itself is `pdejax.studies.stability(config)`.
"""

import sys

from pdejax.cli import main

if __name__ == "__main__":
    sys.exit(main(["stability", *sys.argv[1:]]))
