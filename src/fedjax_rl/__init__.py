"""fedjax_rl: federated and meta reinforcement learning, a federation as one batched axis of one compiled program."""

__version__ = "0.1.0"
