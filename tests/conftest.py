"""Strict numerics for every test, and float64 where a test asks for it."""

import os
import signal
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")
# under nohup, or in a script's background, they are ignored, here and in every process that a test starts
for _number, _default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _default)

# Most of a test's time was XLA's compiler at work on programs that run for a moment. These flags make it four times as
# quick. Numbers differ in the last digits; bits have a process of their own (test_bits.py), and nightly tests XLA as it
# is. An XLA that does not know a flag ends the process, so the first of these is taken that does not.
QUICK = ("--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false", "--xla_backend_optimization_level=0")
# few long tests each: begun last, they would be waited for by a worker that has nothing left
_LONG = ("test_faults.py", "test_placement.py", "test_processes.py", "test_bits.py")


def pytest_configure(config):
    """Before JAX looks at its environment, which processes that tests start have too."""
    if config.getoption("markexpr") != "nightly" and "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = next((flags for flags in QUICK if _is_known(flags)), "")


def _is_known(flags):
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True).returncode == 0


def pytest_collection_modifyitems(items):
    """Files of few long tests come first; a worker takes whole files (--dist loadfile)."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_programs(tmp_path_factory):
    """Programs that were compiled once are there for all tests, for both workers and for processes that tests start."""
    base = tmp_path_factory.getbasetemp()
    home = base.parent if base.name.startswith("popen-") else base
    values = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(home / "programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with pytest.MonkeyPatch.context() as patch:
        before = {name: getattr(jax.config, name) for name in values}
        for name, value in values.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
        compilation_cache.reset_cache()
        for name, value in before.items():
            jax.config.update(name, value)
