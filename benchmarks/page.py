"""docs/performance.md from the rows in benchmarks/results: `python -m benchmarks.page`."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
MARK = "<!-- rows: made by python -m benchmarks.page -->"

# benchmark -> (title, {column title: path into the row})
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "P1": (
        "Physics (P1)",
        {
            "environment": "env",
            "engine": "backend",
            "environments": "environments",
            "physics steps/s": "physics_steps_per_s",
            "over native": "over_native",
            "env steps/s": "env_steps_per_s",
            "one-step error, p99": "one_step_error_p99",
        },
    ),
    "P2": (
        "Learning (P2)",
        {
            "clients": "clients",
            "updates/s, first order": "client_updates_per_s.first",
            "updates/s, exact": "client_updates_per_s.second",
            "exact / first, time": "exact_to_first_time",
            "exact / first, FLOPs": "exact_to_first_flops",
        },
    ),
    "P3": (
        "A round and its parts (P3), seconds",
        {
            "environment": "env",
            "engine": "backend",
            "clients": "clients",
            "round": "seconds.round",
            "sampling": "seconds.sampling",
            "rollouts": "seconds.rollouts",
            "adapt": "seconds.adapt",
            "local": "seconds.local",
            "server": "seconds.server",
            "physics alone": "seconds.physics",
            "round / (physics + gradients)": "p8",
            "physics alone / sampling": "sampling_against_physics",
            "native's round over it": "round_over_native",
            "native's rollouts over them": "rollouts_over_native",
        },
    ),
    "P4": (
        "Runs of several seeds in one program (P4)",
        {
            "engine": "backend",
            "seeds": "seeds",
            "preset": "preset",
            "compile, s": "compile_s",
            "round, s": "round_s",
            "seed-rounds/s": "seed_rounds_per_s",
            "minutes to the last round": "minutes_to_the_end",
        },
    ),
    "P5": (
        "Devices (P5): equality and counts",
        {
            "scaling": "kind",
            "devices": "on_devices",
            "clients a round": "clients_per_round",
            "draws equal": "draws_equal",
            "parameters apart after a round": "parameters_apart",
            "collectives a round": "collectives",
            "compilations": "compilations",
        },
    ),
    "P6": (
        "Clients and memory (P6)",
        {
            "engine": "backend",
            "N": "clients",
            "M": "clients_per_round",
            "round, s": "round_s",
            "state, bytes": "state_bytes",
            "temporary bytes per selected client": "temporary_bytes_per_selected_client",
        },
    ),
    "P7": (
        "Compilation (P7), seconds",
        {
            "environment": "env",
            "engine": "backend",
            "round's program, cold": "cold.round_program_s",
            "whole tiny run, cold": "cold.whole_command_s",
            "cached": "cached",
        },
    ),
    "P9": (
        "What else could be used (P9), environment steps a second",
        {
            "engine": "backend",
            "clients": "clients",
            "our round": "env_steps_per_s.round",
            "our rollouts": "env_steps_per_s.rollouts",
            "client by client": "env_steps_per_s.client by client",
            "Gymnasium, one process": "env_steps_per_s.gymnasium, one process",
            "Gymnasium, a process a core": "env_steps_per_s.gymnasium, a process a core",
            "EnvPool": "env_steps_per_s.envpool",
            "brax.envs on MJX": "env_steps_per_s.brax",
            "ratios": "ratios",
        },
    ),
    "P10": (
        "Other people's environments (P10), environment steps a second",
        {
            "environment": "env",
            "episodes": "episodes",
            "gymnax/": "gymnax_steps_per_s",
            "gym/": "gym_steps_per_s",
            "envpool/": "envpool_steps_per_s",
            "Gymnasium's loop over them": "gymnasium_sync_steps_per_s",
            "Gymnasium's own, in NumPy": "gymnasium_own_steps_per_s",
        },
    ),
    "P11": (
        "Clients of unlike networks (P11), seconds of a round",
        {
            "clients": "clients",
            "episodes": "episodes",
            "seeds": "seeds",
            "ten kinds": "ten_kinds_s",
            "one kind": "one_kind_s",
            "speed over one kind's": "speed_of_one_kind",
            "one program": "one_program_s",
            "a loop over agents": "a_loop_over_agents_s",
            "loop / program": "loop_over_program",
        },
    ),
    "P12": (
        "Clients at times of their own (P12), seconds of a client's job",
        {
            "method": "what",
            "environment": "env",
            "engine": "backend",
            "clients": "clients",
            "lanes": "lanes",
            "lanes used": "lanes_used",
            "a job": "job_s",
            "synchronous, of a cohort of": "cohort",
            "a job there": "synchronous_job_s",
            "job / synchronous job": "job_over_synchronous",
            "plan / round": "plan_of_round",
        },
    ),
    "P13": (
        "Trust (P13): what a way of sending or combining adds to a round",
        {
            "what": "what",
            "environment": "env",
            "engine": "backend",
            "selected clients": "clients_per_round",
            "parameters": "parameters",
            "alone [s]": "part_s",
            "a round [s]": "round_s",
            "share of a round": "share_of_round",
        },
    ),
}


def value(row: dict[str, Any], path: str) -> Any:
    """The entry of a row at a dotted path; None where there is none."""
    found: Any = row
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def text(found: Any) -> str:
    """A figure as people read it."""
    if found is None:
        return ""
    if isinstance(found, float):
        return f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.3g}"
    if isinstance(found, int) and not isinstance(found, bool):
        return f"{found:,}"
    if isinstance(found, dict):
        return ", ".join(f"{key} {text(part)}" for key, part in found.items())
    if isinstance(found, list):
        return "; ".join(map(text, found))
    return str(found)


def tables(rows: list[dict[str, Any]]) -> str:
    """The rows, by benchmark and machine."""
    lines = []
    for name, (title, columns) in TABLES.items():
        mine = [row for row in rows if row["benchmark"] == name]
        for machine in dict.fromkeys(machine_of(row) for row in mine):
            lines += [f"### {title}", "", machine, "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            some = [row for row in mine if machine_of(row) == machine]
            lines += ["| " + " | ".join(text(value(row, path)) for path in columns.values()) + " |" for row in some]
            lines.append("")
    return "\n".join(lines)


def machine_of(row: dict[str, Any]) -> str:
    """Device and versions."""
    names = ("jax", "mujoco", "mujoco-mjx")
    found = ", ".join(f"{name} {row['versions'][name]}" for name in names)
    vectors = f" with {row['vectors']}" if row.get("vectors") else ""
    return f"{row['devices']} x {row['device']}, {row['cores']} core{'s' * (row['cores'] > 1)}{vectors}; {found}"


def main() -> None:
    rows = [row for path in sorted((HERE / "results").glob("*.json")) for row in json.loads(path.read_text())]
    head = PAGE.read_text().split(MARK)[0] if PAGE.exists() else "# Performance\n\n"
    PAGE.write_text(f"{head}{MARK}\n\n{tables(rows)}")
    print(PAGE)


if __name__ == "__main__":
    main()
