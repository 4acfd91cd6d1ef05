"""Fused physics: a robot's step, generated from its MJCF as one C++ program, one simulation in each lane of a vector.

    MJCF -> robot (and refusals) -> step: kinematics, dynamics, constraints, problem, newton  [scalar JAX operations]
         -> emit, program: C++ over lanes.h, called through handler.h on XLA's threads (threads.h) or a GPU's (cuda.h)
         -> compiler, cache -> engine: `Physics`
Same model, same constraint problem, solved to its end: C MuJoCo's numbers to float32 rounding.
"""
