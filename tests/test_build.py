"""From a configuration to the objects: what the options do to a round."""

import jax
import optax

from fedjax_rl import build, config, trees

SMALL = {"env": "probe/target", "num_clients": 4, "clients_per_round": 2, "episodes": 2, "hidden": (4,)}


def test_max_change_norm_bounds_the_servers_step():
    """With a server that adds the mean change, no round moves the model by more than the clip, and the clip binds."""
    moved = {}
    for clip in (0.0, 1e-5):
        extra = {"server": "sgd", "server_lr": 1.0, "local_lr": 1.0, "max_change_norm": clip}
        run = build.make_run(config.build("fedavg", SMALL, extra))
        state = build.initial_state(run)
        after, _ = jax.jit(run.simulation.round)(state)
        moved[clip] = float(optax.global_norm(trees.sub(after.server.shared, state.server.shared)))
    assert moved[1e-5] <= 1e-5 * 1.01 < moved[0.0]


def test_environment_steps_are_counted():
    """FMRL samples two batches: 2 clients x 2 batches x 2 episodes x the horizon; FedAvg one."""
    runs = {name: build.make_run(config.build(name, SMALL)) for name in ("fmrl", "fedavg")}
    horizon = runs["fmrl"].env.spec.horizon
    assert runs["fmrl"].env_steps_per_round == 8 * horizon
    assert runs["fedavg"].env_steps_per_round == 4 * horizon
