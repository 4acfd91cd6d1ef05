"""`python -m fedjax_rl` is the command `fedjax-rl`."""

import sys

from fedjax_rl.cli import program

if __name__ == "__main__":
    sys.exit(program())
