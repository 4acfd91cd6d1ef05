"""Reinforcement learning for one client: policy, rollout, advantages, surrogates, and the problem made of them."""

from fedjax_rl.rl.policies import POLICIES, Policy, gaussian_mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.rl.surrogates import SURROGATES

__all__ = ["POLICIES", "SURROGATES", "Policy", "gaussian_mlp", "make_problem"]
