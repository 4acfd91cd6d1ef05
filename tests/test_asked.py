"""Names of other people's environments as the configuration reads them; no library is imported for it."""

import subprocess
import sys

import pytest

from fedjax_rl.cli import main
from fedjax_rl.config import build
from fedjax_rl.host import registry

ALL = pytest.mark.parametrize("prefix", registry.PREFIX["environment"])


@ALL
def test_every_prefix_takes_a_horizon(prefix):
    assert build("fedavg", {"env": f"{prefix}Some-v0?horizon=20"}).env == f"{prefix}Some-v0?horizon=20"
    place = registry.PREFIX["environment"][prefix].place
    assert place.startswith("fedjax_rl.envs.")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("?length=1", "'length=1' is not understood; after ? comes FIELD=LOW:HIGH"),
        ("?", "'' is not understood"),
        ("?a=1:2&a=1:2", "'a=1:2' is not understood"),
        ("?a=1:2?b=1:2", "'a=1:2?b=1:2' is not understood"),
        ("?a=2:1", "'a=2:1' is no range; write FIELD=LOW:HIGH with two numbers, the lower first"),
        ("?a=1:1", "'a=1:1' is no range"),
        ("?a=nan:1", "'a=nan:1' is no range"),
        ("?a=1:inf", "'a=1:inf' is no range"),
        ("?a=x:1", "'a=x:1' is no range"),
        ("?horizon=0", "'horizon=0' is not understood"),
        ("?horizon=1.5", "'horizon=1.5' is not understood"),
        ("?horizon=5&horizon=6", "'horizon=6' is not understood"),
        ("\x1b[31m", "only letters, digits, _, - and . may follow gymnax/"),
    ],
)
def test_a_query_is_refused_in_one_line(query, why, capsys):
    assert main(["train", "fedavg", "--env", f"gymnax/CartPole-v1{query}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert why in line and "\x1b" not in line


def test_brax_has_a_horizon_but_no_fields(capsys):
    assert main(["train", "fedavg", "--env", "brax/hopper?gravity=1:2"]) == 2
    assert "'gravity=1:2' is not understood; after ? comes horizon=STEPS" in capsys.readouterr().err


def test_a_configuration_imports_no_simulator():
    code = """
import sys
import fedjax_rl.envs
from fedjax_rl.config import build
from fedjax_rl.host import registry
for prefix in registry.PREFIX["environment"]:
    build("fedavg", {"env": prefix + "Some-v0?horizon=20"})
found = {"gymnax", "gymnasium", "envpool", "brax", "mujoco"} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
