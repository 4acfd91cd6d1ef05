"""Who may import whom, read off the source: arrows point to what is imported."""

import ast
from pathlib import Path

import pytest

import fedjax_rl

ROOT = Path(fedjax_rl.__file__).parent
BASE = {"types", "trees"}
LOCAL = BASE | {"meta", "optimizers", "aggregators"}
ALLOWED = {
    "types": set(),
    "trees": {"types"},
    "meta": BASE,
    "optimizers": BASE,
    "aggregators": BASE,
    "clients": BASE,
    "placement": BASE | {"agreement", "exits", "lifeline", "rules"},
    "agreement": {"exits", "lifeline"},
    "lifeline": {"exits", "output", "relay", "rules"},
    "relay": set(),
    "algorithms": LOCAL | {"algorithms"},
    "envs": {"types", "envs", "exits", "host", "numerics", "output"},
    "rl": {"types", "trees", "envs", "rl"},
    "simulate": BASE | {"clients", "placement"},
    "evaluate": BASE | {"meta", "placement"},
    "arrays": BASE | {"numerics"},
    "records": {"exits"},
    "digest": {"files"},
    "signals": {"exits", "output"},
    "checkpoint": BASE | {"arrays", "digest", "exits", "files", "mending", "placement", "rules", "rundir"},
    "metrics": BASE,
    "exits": set(),
    "host": set(),
    "numerics": {"output"},
    "rules": {"exits"},
    "files": {"exits", "rules"},
    "output": {"exits"},
    "config": {"rules"},
    "layers": {"config", "files"},
    "presets": {"config"},
    "sweep": {"config"},
    "groups": {"config", "files", "records", "rundir"},
    "render_gif": {"config"},
    "render_html": {"envs"},
    "plot": {"config", "groups", "metrics"},
    "report": {"command_options", "groups", "metrics", "output", "plot"},
}
ONLY_IN = {
    "mujoco": ("envs/physics/", "render_gif.py", "bench/"),
    "orbax": ("checkpoint.py",),
    "brax": ("envs/brax.py", "render_html.py", "bench/peers.py"),
    "PIL": ("render_gif.py",),
    "flax": ("rl/",),
    "tyro": ("arguments.py", "command_options.py"),
    "rich": ("progress.py",),
    "matplotlib": ("plot.py",),
}


def imports(path: Path) -> set[str]:
    """Every dotted name that a file imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return names


FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fedjax_rl.")} - {"__version__"}
    allowed = ALLOWED.get(room(path))
    if allowed is not None:
        assert used <= allowed, f"{path.name} may not import {sorted(used - allowed)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_libraries_have_one_door(path):
    inside = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        doors = ONLY_IN.get(name.split(".")[0])
        assert doors is None or inside.startswith(doors), f"{inside} imports {name}; its door is {doors}"


def test_only_problem_joins_environments_and_problems():
    joins = [p.name for p in FILES if room(p) == "rl" and "fedjax_rl.types.Problem" in imports(p)]
    assert joins == ["problem.py"]
