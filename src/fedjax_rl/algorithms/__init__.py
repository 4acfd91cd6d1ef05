"""The algorithms, one short file each, and the only list to touch when one is added."""

from fedjax_rl.algorithms.ditto import ditto
from fedjax_rl.algorithms.fedavg import fedavg
from fedjax_rl.algorithms.fedprox import fedprox
from fedjax_rl.algorithms.fedrep import fedrep
from fedjax_rl.algorithms.fmrl import fmrl
from fedjax_rl.algorithms.independent import independent
from fedjax_rl.algorithms.meta_sgd import meta_sgd
from fedjax_rl.algorithms.parts import keep_on_client, with_stragglers
from fedjax_rl.algorithms.per_fedavg import per_fedavg
from fedjax_rl.algorithms.pfedme import pfedme
from fedjax_rl.algorithms.reptile import reptile
from fedjax_rl.algorithms.scaffold import scaffold

__all__ = ["ALGORITHMS", "keep_on_client", "with_stragglers"]

ALGORITHMS = {
    "fmrl": fmrl,
    "fedavg": fedavg,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "per_fedavg": per_fedavg,
    "pfedme": pfedme,
    "fedrep": fedrep,
    "ditto": ditto,
    "reptile": reptile,
    "meta_sgd": meta_sgd,
    "independent": independent,
}
