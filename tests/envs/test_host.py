"""The seam for environments of the host, with one made for the purpose: its episodes are known in advance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _cohorts import assert_half_has_the_episodes_of_the_whole

from fedjax_rl.envs import host
from fedjax_rl.envs.base import EnvSpec
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.rl.rollout import make_rollout

HORIZON = 12
SPEC = EnvSpec("walks", 3, 1, HORIZON, 3, host=True)


class Walks:
    """Episodes that show (the seed's fraction, steps, task + sum of actions), pay the sum, end after 1 + seed % 9.

    `broken`: the fractions of the seeds whose first step shows infinity.
    """

    def __init__(self, seeds, tasks, broken=()):
        self.seeds, self.broken, self.calls, self.closed = seeds, broken, [], False
        self.obs = np.stack([fraction(seeds), 0 * seeds, tasks.reshape(-1)], axis=1).astype(np.float32)

    def step(self, actions, live):
        self.calls.append(int(live.sum()))
        assert not self.closed
        self.obs[live, 1] += 1
        self.obs[live, 2] += actions[live, 0]
        self.obs[np.isin(self.obs[:, 0], self.broken), 2] = np.inf
        return self.obs, self.obs[:, 2], self.obs[:, 1] >= length(self.seeds)

    def close(self):
        self.closed = True


def fraction(seeds):
    return (seeds / 2.0**31).astype(np.float32)


def length(seeds):
    return 1 + seeds % 9


def walks(begun, **given):
    """The environment; every batch that it begins is appended to `begun`."""

    def begin(seeds, tasks):
        begun.append(Walks(seeds, tasks, **given))
        return begun[-1]

    return host.host_env(SPEC, begin, lambda key, n: jnp.arange(n, dtype=jnp.float32), str)


def seeds_of(keys):
    return np.asarray(jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32) & host.SEED_BITS)(keys))


def reset_keys(key, episodes):
    return jax.random.split(jax.random.split(key)[0], episodes)


@pytest.fixture(scope="module")
def rolled():
    """2 members x 3 clients x 4 episodes in one batch: (batches begun, keys [2, 3], parameters, trajectory)."""
    begun = []
    env = walks(begun)
    policy = gaussian_mlp(SPEC, hidden=(4,))
    rollout = make_rollout(env, policy, 4)
    params = jax.vmap(policy.init)(jax.random.split(jax.random.key(0), 2))
    keys, tasks = jax.random.split(jax.random.key(1), (2, 3)), env.sample_tasks(jax.random.key(0), 3)
    every = jax.jit(jax.vmap(jax.vmap(rollout, in_axes=(None, 0, 0)), in_axes=(0, None, 0)))
    return begun, keys, params, jax.tree.map(np.asarray, every(params, tasks, keys)), (rollout, every, tasks)


def test_every_episode_is_its_seeds(rolled):
    begun, keys, _, out, _ = rolled
    assert len(begun) == 1
    for member in range(2):
        for client in range(3):
            seeds = seeds_of(reset_keys(keys[member, client], 4))
            for e, seed in enumerate(seeds):
                here, steps = (member, client, e), length(seed)
                np.testing.assert_array_equal(out.mask[here], np.arange(HORIZON) < steps)
                np.testing.assert_array_equal(out.obs[here][:steps, 0], fraction(seeds)[e])
                np.testing.assert_array_equal(out.obs[here][:steps, 1], np.arange(steps))
                earned = client + np.cumsum(out.action[here][:steps, 0])
                np.testing.assert_allclose(out.reward[here], np.append(earned, np.zeros(HORIZON - steps)), rtol=1e-5)


def test_the_loop_ends_with_the_last_episode_and_the_finished_are_not_stepped(rolled):
    begun, keys, *_ = rolled
    lengths = length(np.concatenate([seeds_of(reset_keys(key, 4)) for key in keys.reshape(-1)]))
    assert lengths.max() < HORIZON and len(set(lengths)) > 3
    assert begun[0].calls == [int((lengths > t).sum()) for t in range(lengths.max())] and begun[0].closed


def test_the_predicate_of_the_loop_is_never_batched(rolled):
    _, keys, params, _, (_, every, tasks) = rolled
    [loop] = [
        eqn for eqn in equations(jax.make_jaxpr(every)(params, tasks, keys).jaxpr) if eqn.primitive.name == "while"
    ]
    [predicate] = loop.params["cond_jaxpr"].out_avals
    assert predicate.shape == ()


def equations(jaxpr):
    """All equations, those inside of others too, but for the bodies of the draws."""
    for eqn in jaxpr.eqns:
        if "threefry" in str(eqn.params.get("name", "")):
            continue
        yield eqn
        for inner in jax.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


def test_a_loop_that_ends_early_learns_what_a_scan_learns(rolled):
    """Where an episode is alive, everything; where it is over, nothing counts, and all is finite."""
    begun, keys, params, out, (_, _, tasks) = rolled
    scanned = walks(begun)._replace(spec=SPEC._replace(host=False))
    rollout = make_rollout(scanned, gaussian_mlp(SPEC, hidden=(4,)), 4)
    every = jax.jit(jax.vmap(jax.vmap(rollout, in_axes=(None, 0, 0)), in_axes=(0, None, 0)))
    other = jax.tree.map(np.asarray, every(params, tasks, keys))
    for name in ("mask", "frozen"):
        np.testing.assert_array_equal(getattr(out, name), getattr(other, name))
    np.testing.assert_allclose(out.reward, other.reward, rtol=1e-5)  # two programs round differently
    for name in ("obs", "action", "logp"):
        np.testing.assert_allclose(getattr(out, name)[out.mask], getattr(other, name)[out.mask], rtol=1e-5, atol=1e-6)
        assert np.isfinite(getattr(out, name)).all()


def test_half_of_a_cohort_has_the_episodes_that_it_has_in_the_whole():
    assert_half_has_the_episodes_of_the_whole(walks([]), 1.0, jnp.ones(1))


def test_policies_that_share_their_keys_share_a_reset(rolled):
    """Mapped over parameters alone: one reset of 4 episodes becomes 2 x 4 at the first step."""
    _, keys, params, out, (rollout, _, tasks) = rolled
    shared = jax.jit(jax.vmap(rollout, in_axes=(0, None, None)))(params, tasks[0], keys[0, 0])
    for member in range(2):
        np.testing.assert_array_equal(shared.mask[member], out.mask[0, 0])
    mine = jax.tree.map(lambda x: x[0], shared)
    np.testing.assert_allclose(mine.reward, out.reward[0, 0], rtol=1e-5, atol=1e-5)
    assert np.abs(shared.reward[1] - shared.reward[0]).max() > 0.1


def test_two_rollouts_of_one_key_in_one_program_are_each_whole(rolled):
    """The compiler merges their equal resets into one, so that both have the same ticket."""
    _, keys, params, out, (rollout, _, tasks) = rolled
    first, second = (jax.tree.map(lambda x: x[m], params) for m in (0, 1))
    both = jax.jit(lambda p, q: [rollout(one, tasks[0], keys[0, 0]) for one in (p, q)])(first, second)
    for mine in both:
        np.testing.assert_array_equal(mine.mask, out.mask[0, 0])
    alone = jax.jit(rollout)(second, tasks[0], keys[0, 0])
    np.testing.assert_array_equal(both[1].reward, alone.reward)


def test_what_is_not_finite_is_over():
    keys = jax.random.split(jax.random.key(3), 6)
    seeds = seeds_of(reset_keys(keys[0], 4))
    begun = []
    env = walks(begun, broken=fraction(seeds)[1:2])
    policy = gaussian_mlp(SPEC, hidden=(4,))
    out = jax.jit(make_rollout(env, policy, 4))(policy.init(jax.random.key(0)), 0.0, keys[0])
    np.testing.assert_array_equal(out.frozen, (np.arange(4)[:, None] == 1) & (np.arange(HORIZON) == 0))
    assert begun[0].calls[1] == int((length(seeds) > 1).sum()) - int(length(seeds)[1] > 1) and begun[0].closed


def test_a_program_that_steps_twice_from_one_state_is_told():
    env = walks([])

    def twice(key):
        state = env.reset(key, 0.0)
        return [env.step(state, jnp.full(1, x), 0.0).obs for x in (1.0, 2.0)]

    with pytest.raises(jax.errors.JaxRuntimeError, match="walks: step 0 of batch 1 came where step 1 was due"):
        jax.block_until_ready(jax.jit(twice)(jax.random.key(0)))


def test_two_batches_of_one_program_do_not_meet():
    env = walks([])
    policy = gaussian_mlp(SPEC, hidden=(4,))
    rollout, params = make_rollout(env, policy, 4), policy.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(4), 2)
    both = jax.jit(lambda a, b: (rollout(params, 0.0, a), rollout(params, 0.0, b)))(*keys)
    for one, key in zip(both, keys, strict=True):
        alone = jax.jit(rollout)(params, 0.0, key)  # another program, whose policy rounds otherwise
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, alone)
    assert (both[0].mask != both[1].mask).any()
