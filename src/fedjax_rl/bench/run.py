"""P4 and P6: whole runs of one and of many members, and what a federation's size costs in time and memory."""

import jax
import numpy as np

from fedjax_rl import config, trees
from fedjax_rl.bench.rows import Row, median, row, spread, timed
from fedjax_rl.config import presets
from fedjax_rl.envs import resolve_backend
from fedjax_rl.runs import assemble, loop
from fedjax_rl.runs.memory import needed

FEDERATIONS = ((200, 40), (1_000, 40), (10_000, 40), (1_000, 200))  # (N, M)


def run(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """P4: a row for each number of seeds in one program, at the laptop preset (on accelerators: the paper's)."""
    preset = "laptop" if jax.default_backend() == "cpu" else "paper"
    rows = []
    for members in sizes or (1, 5):
        made = configs(env, backend, preset, range(members))
        compile_s, seconds, _ = rounds(made, repeats)
        total = made[0].rounds
        figures = {
            "seeds": members,
            "preset": preset,
            "compile_s": compile_s,
            "round_s": median(seconds),
            "round_range": spread(seconds),
            "seed_rounds_per_s": members / median(seconds),
            "rounds": total,
            "minutes_to_the_end": (compile_s + total * median(seconds)) / 60,
        }
        rows.append(row("P4", env=env, backend=made[0].backend, **figures))
    return rows


def memory(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """P6: time of a round and bytes against N and M (N M pairs in `sizes`)."""
    pairs = tuple(zip(sizes[::2], sizes[1::2], strict=True)) or FEDERATIONS
    rows = []
    for n, m in pairs:
        made = configs(env, backend, "paper", [0], num_clients=n, clients_per_round=m)
        compile_s, seconds, program = rounds(made, repeats)
        state = jax.eval_shape(lambda made=made: assemble.initial_states(assemble.make_group(made)))
        analysis = program.step.memory_analysis()
        figures = {
            "clients": n,
            "clients_per_round": m,
            "round_s": median(seconds),
            "round_range": spread(seconds),
            "state_bytes": int(trees.num_bytes(jax.tree.map(raw, state))),
            "temporary_bytes_per_selected_client": analysis.temp_size_in_bytes / m,
            "program_bytes": needed(program.step),
            "compile_s": compile_s,
        }
        rows.append(row("P6", env=env, backend=made[0].backend, **figures))
    return rows


def raw(leaf):
    """A leaf's shape and type; of typed keys, their words'."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf


def configs(env: str, backend: str, preset: str, seeds, **values) -> list[config.Config]:
    """FMRL's configurations for these seeds."""
    layers = (presets.preset(preset, "fmrl", env), {"env": env, "backend": resolve_backend(backend), **values})
    return [config.build("fmrl", *layers, {"seed": seed}) for seed in seeds]


def rounds(made: list[config.Config], repeats: int) -> tuple[float, list[float], loop.Program]:
    """(seconds of compilation, seconds of each of `repeats` rounds after the first, the program)."""
    group = assemble.make_group(made)
    program = loop.compile_round(group)
    states, alive = assemble.initial_states(group), np.ones(len(made), bool)
    seconds = []
    for _ in range(repeats + 1):
        taken, (states, alive, _) = timed(program.step, states, alive, group.values)
        seconds.append(taken)
    return program.compile_s, seconds[1:], program
