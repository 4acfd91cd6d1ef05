"""Films as GIFs: MuJoCo's renderer or the environment draws the frames, Pillow labels and writes them (nobody else
imports Pillow)."""

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fedjax_rl.config import ConfigError

WIDTH, HEIGHT = 240, 160  # pixels of a panel
FRAME_MS = 50  # an environment step: real time
TEXT, STRIP = 10, 46  # pixels: letters, and the height of three lines of them above a picture that is given
DISTANCE, ELEVATION, LOOK_AT = 3.2, -12.0, 0.5  # m, degrees, m above the floor: of the camera, which looks along +y
NO_GL = (
    "no OpenGL to draw GIF frames with (MUJOCO_GL={gl}: {why}); install libegl1 and set MUJOCO_GL=egl, or libosmesa6 "
    "and MUJOCO_GL=osmesa, before Python starts; or write a page, which needs none: --out NAME.html"
)


def prepare(env: str) -> None:
    """Find out what is missing before anything is computed.

    What Gymnasium's environments draw with is their own affair. MuJoCo looks at MUJOCO_GL when it is imported:
    headless, unless there is a display or somebody chose otherwise. Where it was imported before, it is too late to
    choose.

    Raises:
      ConfigError: Pillow or OpenGL is missing.
    """
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("a GIF needs Pillow; install it with: pip install 'fedjax-rl[render]'") from None
    if env.startswith("gym/"):
        return
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display and "mujoco" not in sys.modules:
        os.environ.setdefault("MUJOCO_GL", "egl")
    if why := _no_opengl():
        raise ConfigError(NO_GL.format(gl=os.environ.get("MUJOCO_GL", "not set"), why=why))


@functools.cache
def _no_opengl() -> str:
    """Why MuJoCo cannot draw; "" where it can. Tried once: after a failure, a second try aborts the process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GLFW, which says the same as its error
            import mujoco

            mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), HEIGHT, WIDTH).close()
    except Exception as error:  # each of the OpenGL libraries fails in its own way
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""


def make_writer(xml: str) -> Callable[[Sequence[Sequence[Any]]], bytes]:
    """rows of panels -> a GIF that plays in real time; the panels of a row are side by side. `prepare` comes first."""

    def write(rows: Sequence[Sequence[Any]]) -> bytes:
        import mujoco

        with mujoco.Renderer(_stage(xml), HEIGHT, WIDTH) as renderer:
            panels = [[_frames(renderer, panel.qpos) for panel in row] for row in rows]
        where = lambda panel: [f"{panel.client}\n{panel.model}\nx = {x:+.1f} m" for x in panel.qpos[:, 0]]
        return _gif(panels, [[where(panel) for panel in row] for row in rows], FRAME_MS)

    return write


def of_pictures(rows: Sequence[Sequence[Any]], step_ms: float) -> bytes:
    """Rows of panels with pictures -> a GIF that plays in real time; who is over first stands still. `prepare` comes
    first."""
    every = max(1, round(FRAME_MS / step_ms))
    shown = [[_kept(panel.pictures, every) for panel in row] for row in rows]
    longest = max(len(kept) for row in shown for kept in row)
    shown = [[kept + [kept[-1]] * (longest - len(kept)) for kept in row] for row in shown]
    labels = [[f"{panel.client}\n{panel.model}\npaid so far " for panel in row] for row in rows]
    texts = [
        [[f"{label}{paid:.1f}" for _, paid in kept] for label, kept in zip(*pair, strict=True)]
        for pair in zip(labels, shown, strict=True)
    ]
    return _gif([[[picture for picture, _ in kept] for kept in row] for row in shown], texts, every * step_ms)


def _kept(pictures: Iterable[tuple[np.ndarray, float]], every: int) -> list[tuple[np.ndarray, float]]:
    """Pictures 0, `every`, 2 `every`, ... and the last one, WIDTH wide, below a strip for the label."""
    from PIL import Image

    strip = np.full((STRIP, WIDTH, 3), 255, np.uint8)
    kept: list[tuple[np.ndarray, float]] = []
    for number, (picture, paid) in enumerate(pictures):
        size = WIDTH, round(picture.shape[0] * WIDTH / picture.shape[1])
        small = np.vstack([strip, np.asarray(Image.fromarray(picture).resize(size))])
        kept[-(-number // every) :] = [(small, paid)]  # which takes the place of one that is none of them
    return kept


def _stage(xml: str) -> Any:
    """The model with chequers on its planes, without which nobody sees the robot move, a sky and a light."""
    import mujoco

    spec = mujoco.MjSpec.from_string(xml)
    builtin, kind = mujoco.mjtBuiltin, mujoco.mjtTexture
    sky = {"rgb1": [0.75, 0.82, 0.9], "rgb2": [0.95, 0.95, 0.95], "width": 64, "height": 64}
    spec.add_texture(name="sky", type=kind.mjTEXTURE_SKYBOX, builtin=builtin.mjBUILTIN_GRADIENT, **sky)
    tiles = {"rgb1": [0.35, 0.4, 0.45], "rgb2": [0.55, 0.6, 0.65], "width": 128, "height": 128}
    spec.add_texture(name="tiles", type=kind.mjTEXTURE_2D, builtin=builtin.mjBUILTIN_CHECKER, **tiles)
    floor = spec.add_material(name="tiles", texrepeat=[1, 1], texuniform=True)  # a chequer of 2 x 2 tiles on 1 m
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "tiles"
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE:
            geom.material = "tiles"
            geom.size = [0, 0, 1]  # without an end: a good runner leaves 40 m behind it
        else:
            geom.rgba = [0.85, 0.45, 0.2, 1.0]
    track, sun = mujoco.mjtCamLight.mjCAMLIGHT_TRACK, mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    torso = spec.body("torso") or (spec.bodies[1:] or spec.bodies)[0]  # without one the first body; 0 is the world
    torso.add_light(mode=track, pos=[0, 0, 4], dir=[0, 0.3, -1], type=sun)
    return spec.compile()


def _frames(renderer: Any, qpos: np.ndarray) -> list[np.ndarray]:
    """Pictures [HEIGHT, WIDTH, 3] uint8 of poses [T, nq], seen from a camera that moves with the torso."""
    import mujoco

    model = renderer.model
    data, camera = mujoco.MjData(model), mujoco.MjvCamera()
    camera.distance, camera.elevation, camera.azimuth = DISTANCE, ELEVATION, 90.0
    frames, torso = [], mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "torso")
    followed = torso if torso >= 0 else min(1, model.nbody - 1)  # without one the first body; 0 is the world
    for pose in qpos:
        data.qpos[:] = pose
        mujoco.mj_forward(model, data)
        camera.lookat[:] = [*data.xpos[followed, :2], LOOK_AT]
        renderer.update_scene(data, camera)
        frames.append(renderer.render())
    return frames


def _gif(
    panels: Sequence[Sequence[Sequence[np.ndarray]]], texts: Sequence[Sequence[Sequence[str]]], frame_ms: float
) -> bytes:
    """Frames [rows][columns][T] with their labels as one animation."""
    from PIL import Image, ImageDraw, ImageFont

    font, frames = ImageFont.load_default(TEXT), []
    height, width, _ = panels[0][0][0].shape
    for t in range(len(panels[0][0])):
        image = Image.fromarray(np.vstack([np.hstack([panel[t] for panel in row]) for row in panels]))
        draw = ImageDraw.Draw(image)
        for i, row in enumerate(texts):
            for j, text in enumerate(row):
                draw.text((j * width + 4, i * height + 3), text[t], fill="black", font=font)
        frames.append(image.quantize(64, dither=Image.Dither.NONE))
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=frame_ms, loop=0)
    return file.getvalue()
