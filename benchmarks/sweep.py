"""The phase diagram of tokens under attention, as a sweep of runs that any number of machines share.

    python benchmarks/sweep.py --out out/phases
    python benchmarks/sweep.py --betas 32 --seeds 348 --out out/large    # 100,224 runs

The same as `pdejax sweep`; the study itself is `pdejax.studies.phase_diagram(config)`.
"""

import sys

from pdejax.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
