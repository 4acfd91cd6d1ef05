"""P9: what a user would pick today, in the same run on the same machine: same robot, task, policy and cohort.

gymnasium: Gymnasium's half-cheetah on our MJCF with a PyTorch policy, one environment in one process, and one process
a core. pytorch round: the paper's FMRL round, first order, by that loop and PyTorch's gradients; timed on one client
and multiplied by the cohort. envpool and brax: EnvPool's half-cheetah (C MuJoCo on all cores) and that of `brax.envs`
(MJX), as many as the cohort has episodes at once. client by client: our own update, compiled once and called for one
client after the other. rollouts: our two rollouts of a round with the policies of all clients, without the advantages,
which the others do not compute either. All are environment steps a second, policies included (brax, envpool: random
actions). Ratios are medians of the repeats' ratios, with their ranges.
"""

import concurrent.futures
import multiprocessing
from importlib import resources
from typing import Any

import jax
import numpy as np

from fedjax_rl import config, trees
from fedjax_rl.bench.round import make_sampling, without_advantages
from fedjax_rl.bench.rows import Row, interleaved, median, row, spread, timed
from fedjax_rl.config import ConfigError, presets
from fedjax_rl.envs import resolve_backend
from fedjax_rl.federation import simulate
from fedjax_rl.host.cores import cores as usable_cores
from fedjax_rl.host.numerics import root_key
from fedjax_rl.runs import assemble

HORIZON, EPISODES, LOCAL_STEPS, BATCH_STEPS = 200, 20, 5, 5
GYM_STEPS = 4000


def peers(env: str, backend: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """One row."""
    try:
        import envpool  # noqa: F401
        import gymnasium  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"bench peers needs {error.name}: pip install 'fedjax-rl[bench]'") from None
    if not env.startswith("half_cheetah"):
        raise ConfigError(f"--env {env}: bench peers compares half_cheetah/... only")
    cohort = (sizes or (40,))[0]
    values = {"env": env, "backend": backend, "clients_per_round": cohort}
    run = assemble.make_run(config.build("fmrl", presets.preset("paper", "fmrl", env), values))
    state = assemble.initial_state(run)
    copy = jax.jit(lambda s: jax.tree.map(jax.numpy.copy, s))
    fns = {
        "round": lambda: simulate.run_rounds(run.simulation, copy(state), 1),
        "rollouts": make_sampling(run, state, keep=without_advantages),
        "brax": make_brax(cohort * EPISODES),
        "envpool": make_envpool(cohort * EPISODES),
        "client by client": make_loop(run, state, cohort),
        "gymnasium": lambda: gymnasium_loop(GYM_STEPS),
        "pytorch client": pytorch_client,
    }
    each = {name: np.array(found) for name, found in interleaved(fns, repeats).items()}
    seconds = {name: median(found) for name, found in each.items()}
    cores, steps = usable_cores(), run.env_steps_per_round
    per_core = gymnasium_on_every_core(cores) / cores
    speeds = {
        "round": steps / seconds["round"],
        "rollouts": steps / seconds["rollouts"],
        "client by client": steps / seconds["client by client"],
        "gymnasium, one process": GYM_STEPS / seconds["gymnasium"],
        "gymnasium, a process a core": per_core * cores,
        "envpool": cohort * EPISODES * BATCH_STEPS / seconds["envpool"],
        "brax": cohort * EPISODES * BATCH_STEPS / seconds["brax"],
    }
    batches = steps / (cohort * EPISODES * BATCH_STEPS)  # of Brax or EnvPool, in a round's steps
    every = {
        "rollouts over brax": batches * each["brax"] / each["rollouts"],
        "rollouts over envpool": batches * each["envpool"] / each["rollouts"],
        "round over brax": batches * each["brax"] / each["round"],
        "rollouts over gymnasium, per core": steps / each["rollouts"] / (cores * per_core),
        "round over client by client": each["client by client"] / each["round"],
        "round over pytorch": cohort * each["pytorch client"] / each["round"],
    }
    ratios = {name: median(found) for name, found in every.items()}
    ranges = {name: spread(found) for name, found in every.items()}
    rounds = {"round": seconds["round"], "pytorch, one process": cohort * seconds["pytorch client"]}
    figures = {"env_steps_per_s": speeds, "ratios": ratios, "ranges": ranges, "round_s": rounds}
    return [row("P9", env=env, backend=resolve_backend(backend), clients=cohort, **figures)]


def make_loop(run: assemble.Assembled, state: simulate.State, cohort: int):
    """() -> every client's update, one after the other, by one compiled function."""
    update = jax.jit(lambda shared, task, key: run.algorithm.client_update(shared, (), task, key)[0])

    def loop():
        uploads = []
        for i in range(cohort):
            task = trees.take(state.tasks, i)
            uploads.append(update(state.server.shared, task, jax.random.fold_in(state.key, i)))
        return uploads

    return loop


def make_brax(size: int):
    """() -> some steps of `size` of Brax's half-cheetahs under random actions."""
    from brax import envs

    env = envs.get_environment("halfcheetah", backend="mjx")
    keys = jax.random.split(root_key(0), size)
    start = jax.jit(jax.vmap(env.reset))(keys)
    actions = jax.random.uniform(root_key(1), (BATCH_STEPS, size, env.action_size), minval=-1)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, a: (jax.vmap(env.step)(s, a), None), s, actions)[0].obs)
    return lambda: run(start)


def make_envpool(size: int):
    """() -> some steps of `size` of EnvPool's half-cheetahs under random actions."""
    import envpool

    env = envpool.make("HalfCheetah-v5", env_type="gymnasium", num_envs=size, num_threads=usable_cores())
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (BATCH_STEPS, size, 6)).astype(np.float32)
    return lambda: [env.step(action)[0] for action in actions]


def make_gymnasium():
    """Gymnasium's half-cheetah on our MJCF."""
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    with resources.as_file(resources.files("fedjax_rl.envs").joinpath("assets", "half_cheetah.xml")) as path:
        return HalfCheetahEnv(xml_file=str(path))


def make_policy(size: int):
    """tanh (64, 64) with a state-independent log_std, in PyTorch on one thread."""
    import torch

    torch.set_num_threads(1)
    layers = (torch.nn.Linear(size, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh())
    net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 6))
    net.register_parameter("log_std", torch.nn.Parameter(torch.zeros(6)))
    return net


def act(params, net, obs):
    """The Gaussian of the policy with these parameters."""
    import torch

    mean = torch.func.functional_call(net, params, (obs,))
    return torch.distributions.Normal(mean, params["log_std"].exp())


def episode(env, net, params, steps: int):
    """(observations, actions, log-probabilities, rewards) of `steps` steps."""
    import torch

    obs, _ = env.reset()
    kept: tuple[list[Any], ...] = ([], [], [], [])
    with torch.no_grad():
        for _ in range(steps):
            seen = torch.as_tensor(obs, dtype=torch.float32)
            gauss = act(params, net, seen)
            action = gauss.sample()
            control = (action / 10).clamp(-1, 1).numpy()
            obs, reward, *_ = env.step(control)
            for column, value in zip(kept, (seen, action, gauss.log_prob(action).sum(), reward), strict=True):
                column.append(value)
    return torch.stack(kept[0]), torch.stack(kept[1]), torch.stack(kept[2]), np.array(kept[3])


def gymnasium_loop(steps: int) -> float:
    """Act for some steps; the sum of rewards."""
    env = make_gymnasium()
    net = make_policy(env.observation_space.shape[0])
    params = {name: value.detach() for name, value in net.named_parameters()}
    return sum(float(episode(env, net, params, HORIZON)[3].sum()) for _ in range(steps // HORIZON))


def gymnasium_on_every_core(cores: int) -> float:
    """Environment steps a second of a process a core, start-up left out."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores, mp_context=context) as pool:
        list(pool.map(gymnasium_loop, [HORIZON] * cores))
        seconds, _ = timed(lambda: list(pool.map(gymnasium_loop, [GYM_STEPS] * cores)))
    return cores * GYM_STEPS / seconds


def pytorch_client() -> float:
    """One client of the paper's round: two batches, an adaptation, and the local steps of the first-order gradient."""
    import torch

    env = make_gymnasium()
    net = make_policy(env.observation_space.shape[0])
    params = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}

    def batch(now):
        obs, action, logp, rewards = zip(*[episode(env, net, now, HORIZON) for _ in range(EPISODES)], strict=True)
        to_go = np.stack([r[::-1].cumsum()[::-1] for r in rewards])
        advantage = (to_go - to_go.mean(0)) / (to_go.std() + 1e-8)
        return torch.stack(obs), torch.stack(action), torch.stack(logp), torch.as_tensor(advantage.astype(np.float32))

    def loss(now, data):
        obs, action, logp, advantage = data
        ratio = (act(now, net, obs).log_prob(action).sum(-1) - logp).exp()
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    def step(now, data, rate, at=None):
        slope = torch.autograd.grad(loss(now if at is None else at, data), list((now if at is None else at).values()))
        moved = {name: value - rate * g for (name, value), g in zip(now.items(), slope, strict=True)}
        return {name: value.detach().requires_grad_() for name, value in moved.items()}

    inner = batch(params)
    outer = batch(step(params, inner, 0.1))
    for _ in range(LOCAL_STEPS):
        params = step(params, outer, 0.001, at=step(params, inner, 0.1))
    return float(sum(value.detach().abs().sum() for value in params.values()))
