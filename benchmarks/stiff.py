"""Cost to accuracy of a stiff field: N = 1000 tokens, diffusion from 1e-4 to 1e-1, attention and feed-forward on.

    python benchmarks/stiff.py --out out          # T = 0.05, minutes on two cores
    python benchmarks/stiff.py --full --out out   # T = 0.25 with every explicit solve run whole: about an hour

The same as `pdejax stiff`; the study itself is `pdejax.studies.stiff(config)`.
"""

import sys

from pdejax.cli import main

if __name__ == "__main__":
    sys.exit(main(["stiff", *sys.argv[1:]]))
