"""How much less an old message counts: what it is multiplied by before messages are combined."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_rl.types import Array

STALENESS: dict[str, Callable[[Array, Array | float, Array | float], Array]] = {
    "constant": lambda age, power, after: jnp.ones(age.shape),
    "polynomial": lambda age, power, after: (1.0 + age) ** -power,
    "hinge": lambda age, power, after: jnp.where(
        age <= after, 1.0, 1.0 / (power * jnp.maximum(age - after, 0.0) + 1.0)
    ),
}


class Discount(NamedTuple):
    """s(age), and what makes slow clients count as much as fast ones.

    Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", 2019, section 5.2: s is 1, (1 + age)^-a, or 1
    up to an age of b and 1/(a (age - b) + 1) then.

    Attributes:
      name: of STALENESS: "constant", "polynomial" or "hinge".
      power: a.
      after: b, of "hinge" [updates].
      fair: also times the mean number of arrivals of all clients so far, divided by this client's. So in the long run
        every client moves the model as much as any other, however fast.
    """

    name: str = "constant"
    power: Array | float = 0.5
    after: Array | float = 6.0
    fair: bool = False

    def factors(self, ages: Array, own: Array, mean: Array) -> Array | None:
        """Of messages [L]; None where all are 1.

        Args:
          ages: [L] updates of the server while the client worked.
          own: [L] arrivals of the client so far, this one included.
          mean: [L] arrivals so far, this one included, divided by N.
        """
        if self.name == "constant" and not self.fair:
            return None
        s = STALENESS[self.name](ages, self.power, self.after)
        return s * (mean / own) if self.fair else s


CONSTANT = Discount()
