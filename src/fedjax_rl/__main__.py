"""`python -m fedjax_rl` is the command `fedjax-rl`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
