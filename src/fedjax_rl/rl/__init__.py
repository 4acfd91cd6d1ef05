"""Reinforcement learning for one client: policy, rollout, advantages, surrogates, and the problem made of them."""

from fedjax_rl.rl.distributions import Distribution
from fedjax_rl.rl.policies import POLICIES, Policy, categorical_mlp, gaussian_mlp, mlp
from fedjax_rl.rl.problem import make_problem
from fedjax_rl.rl.surrogates import SURROGATES

__all__ = ["POLICIES", "SURROGATES", "Distribution", "Policy", "categorical_mlp", "gaussian_mlp", "make_problem", "mlp"]
