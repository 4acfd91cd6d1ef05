"""Films as a page: a Brax viewer for each panel, which a browser draws and which can be turned and paused.

Nothing needs a display here, but the viewer's scripts come from a public server when the page is opened.
"""

import html as escape
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CONTROL_STEP = 0.05  # s between two frames
HEIGHT = 320  # pixels of a viewer
PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>fedjax_rl</title><style>
body {{ font-family: sans-serif; margin: 1em }} h2 {{ font-size: 1em }} h3 {{ font-size: 0.9em; font-weight: normal }}
.row {{ display: flex; gap: 1em }} .row div {{ flex: 1 }} iframe {{ width: 100%; height: {height}px; border: 0 }}
</style></head><body>
{body}
</body></html>
"""


class _State(NamedTuple):
    """What the viewer reads of a Brax state: the links' positions and rotations."""

    x: Any


def make_writer(xml: str) -> Callable[[Sequence[Sequence[Any]]], bytes]:
    """rows of panels -> a page; the panels of a row are side by side, below a heading with the client."""
    importlib.import_module("fedjax_rl.envs.physics.mjx")  # first, so that MJX stays silent when Brax imports it
    from brax import kinematics
    from brax.io import html, mjcf

    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")  # Brax says that it is no longer developed
        # Brax simulates pyramidal cones alone; nothing is simulated here.
        system = mjcf.loads(xml.replace('cone="elliptic"', 'cone="pyramidal"'))
        system = system.tree_replace({"opt.timestep": CONTROL_STEP})

    def links(pose):
        return kinematics.forward(system, pose, jnp.zeros(system.qd_size()))[0]

    def viewer(qpos: np.ndarray) -> str:
        with jax.numpy_rank_promotion("allow"):
            x = jax.tree.map(np.asarray, jax.jit(jax.vmap(links))(jnp.asarray(qpos)))
        states = [_State(jax.tree.map(lambda leaf: leaf[t], x)) for t in range(len(qpos))]
        return html.render(system, states, height="100vh", colab=False)

    def write(rows: Sequence[Sequence[Any]]) -> bytes:
        body = []
        for row in rows:
            body.append(f'<h2>{escape.escape(row[0].client)}</h2>\n<div class="row">')
            for panel in row:
                frame = f'<iframe srcdoc="{escape.escape(viewer(panel.qpos))}"></iframe>'
                body.append(f"<div><h3>{escape.escape(panel.model)}</h3>{frame}</div>")
            body.append("</div>")
        return PAGE.format(height=HEIGHT, body="\n".join(body)).encode()

    return write
