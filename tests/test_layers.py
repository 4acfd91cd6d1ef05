"""Who may import whom, read off the source: arrows point to what is imported, and none points upwards."""

import ast
from pathlib import Path

import pytest

import fedjax_rl

ROOT = Path(fedjax_rl.__file__).parent
# The rooms of the house from the ground up: a room may use what stands before it in its own row.
ALLOWED = {
    "types": set(),
    "trees": {"types"},
    "meta": {"types", "trees"},
    "statistics": set(),
    "host": set(),
    "config": {"host"},
    "algorithms": {"types", "trees", "meta"},
    "envs": {"types", "host"},
    "rl": {"types", "trees", "envs"},
    "federation": {"types", "trees", "host"},
    "runs": {"types", "trees", "statistics", "host", "config", "algorithms", "envs", "rl", "federation"},
    "reports": {"types", "trees", "statistics", "host", "config", "envs", "rl", "federation", "runs"},
    "bench": {"types", "trees", "meta", "host", "config", "algorithms", "envs", "rl", "federation", "runs"},
    "cli": {"statistics", "host", "config", "envs", "federation", "runs", "reports", "bench"},
    "api": {"statistics", "host", "config", "runs", "reports"},
    "testing": {"types", "host", "envs", "federation"},
    "__init__": {"algorithms", "api", "config", "envs", "federation", "host", "rl", "runs", "testing", "types"},
    "__main__": {"cli"},
}
ONLY_IN = {
    "mujoco": ("envs/physics/", "reports/film_gif.py", "bench/"),
    "orbax": ("runs/checkpoint.py",),
    "brax": ("envs/brax.py", "reports/film_html.py", "bench/peers.py"),
    "gymnax": ("envs/gymnax.py",),
    "gymnasium": ("envs/gym.py", "host/episodes.py", "envs/envpool.py", "bench/"),
    "envpool": ("envs/envpool.py", "bench/"),
    "PIL": ("reports/film_gif.py",),
    "flax": ("rl/",),
    "tyro": ("cli/",),
    "rich": ("runs/progress.py",),
    "matplotlib": ("reports/plot.py",),
    "dp_accounting": ("federation/accountant.py",),
}
FILES = sorted(ROOT.rglob("*.py"))


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


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module(name: str) -> str | None:
    """The module of this package that an imported name is in; None for names of others."""
    parts = name.split(".")
    if parts[0] != "fedjax_rl":
        return None
    while not (ROOT.parent / Path(*parts)).with_suffix(".py").exists() and len(parts) > 1:
        if (ROOT.parent / Path(*parts) / "__init__.py").exists():
            break
        parts.pop()
    return ".".join(parts)


def test_every_room_has_a_row_and_none_is_empty():
    assert {room(path) for path in FILES} == set(ALLOWED) and len(ALLOWED) <= 18


def test_no_arrow_points_upwards():
    """Each row names rooms of rows before it alone, so that there is no circle of rooms."""
    rows = [*ALLOWED]
    assert all(rows.index(used) < rows.index(name) for name, row in ALLOWED.items() for used in row)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fedjax_rl.")} - {"__version__"}
    assert used <= ALLOWED[room(path)] | {room(path)}, (
        f"{path.name} may not import {sorted(used - ALLOWED[room(path)])}"
    )


def test_files_import_each_other_in_no_circle():
    """Also within a room: imports at the top of a file, where a circle would be an error or an accident of order."""
    at_top = {}
    for path in FILES:
        nodes = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
        own = module(".".join(("fedjax_rl", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"))
        at_top[own] = {module(name) for name in names} - {None, own}
    left = dict(at_top)
    while leaves := [name for name, used in left.items() if not used & set(left)]:
        for name in leaves:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_libraries_have_one_door(path):
    inside = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        doors = ONLY_IN.get(name.split(".")[0])
        assert doors is None or inside.startswith(doors), f"{inside} imports {name}; its door is {doors}"


def test_only_problem_joins_environments_and_problems():
    both = ({"fedjax_rl.types.Problem"}, {"fedjax_rl.envs.base.Env"})
    joins = [p.name for p in FILES if room(p) == "rl" and all(some <= imports(p) for some in both)]
    assert joins == ["problem.py"]
