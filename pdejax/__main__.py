"""`python -m pdejax`: the command line where its script is not on the path."""

import sys

from pdejax.cli import main

if __name__ == "__main__":
    sys.exit(main())
