"""Tests that need eight devices; tests/test_placement.py runs them in a process that has them."""

import os

collect_ignore_glob = [] if os.environ.get("JAX_NUM_CPU_DEVICES") == "8" else ["test_*"]
