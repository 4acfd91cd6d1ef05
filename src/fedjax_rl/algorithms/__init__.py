"""The algorithms, one short file each, and the only list to touch when one is added."""

from fedjax_rl.algorithms.fedavg import fedavg
from fedjax_rl.algorithms.fedprox import fedprox
from fedjax_rl.algorithms.fmrl import fmrl

ALGORITHMS = {"fmrl": fmrl, "fedavg": fedavg, "fedprox": fedprox}
