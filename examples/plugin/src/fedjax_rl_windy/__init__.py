"""An algorithm and an environment of one's own for fedjax_rl."""
