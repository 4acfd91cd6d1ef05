"""Films: what is recorded is the rollout, all that differs is the adaptation, and a page shows MuJoCo's own poses."""

import base64
import functools
import html
import inspect
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import fedjax_rl
from fedjax_rl import cli
from fedjax_rl.cli.options import RenderOptions
from fedjax_rl.envs import make_env
from fedjax_rl.envs.dynamics import Dynamics
from fedjax_rl.envs.mujoco_env import load_asset
from fedjax_rl.federation import simulate
from fedjax_rl.reports import film, film_gif
from fedjax_rl.reports import film_html as render_html
from fedjax_rl.rl.policies import gaussian_mlp
from fedjax_rl.rl.rollout import make_rollout
from fedjax_rl.runs import assemble, checkpoint, rundir

TINY = "--preset tiny --hidden 4 --num-clients 4 --clients-per-round 2 --new-clients 0 --order first --adapt-steps 2"
TINY = [*TINY.split(), "--local-steps", "1", "--rounds", "1", "--quiet"]
STEPS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("render") / "run"
    assert cli.main(["train", *TINY, "--inner-lr", "1.0", "--out", str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def restored(trained):
    run = assemble.make_run(rundir.open_run(trained))
    return run, checkpoint.restore(trained / "ckpt", assemble.abstract_state(run), print).state


def page(path):
    """(headings, [{links: [T, L, 3]}]) of a page, by the viewers' own steps: base64, zlib, JSON."""
    text = path.read_text()
    headings = [html.unescape(found) for found in re.findall(r"<h[23]>(.*?)</h[23]>", text)]
    systems = []
    for frame in re.findall(r'srcdoc="(.*?)"></iframe>', text, re.DOTALL):
        packed = re.search(r'var system = "(.*?)"', html.unescape(frame)).group(1)
        systems.append(json.loads(zlib.decompress(base64.b64decode(packed))))
    return headings, systems


def poses(robot, qpos):
    """{body: (positions [T, 3], quaternions [T, 4])} by C MuJoCo's forward kinematics."""
    model = mujoco.MjModel.from_xml_string(load_asset(f"{robot}.xml"))
    data, found = mujoco.MjData(model), {}
    for pose in np.asarray(qpos, np.float64):
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        for i in range(1, model.nbody):
            found.setdefault(model.body(i).name, []).append((data.xpos[i].copy(), data.xquat[i].copy()))
    return {name: tuple(map(np.stack, zip(*rows, strict=True))) for name, rows in found.items()}


def check_system(robot, system, qpos):
    assert system["opt"]["timestep"] == 0.05 and len(system["states"]["x"]) == len(qpos)
    expected = poses(robot, qpos)
    for i, name in enumerate(system["link_names"]):
        for key, values, tolerance in zip(("pos", "rot"), expected[name], (1e-5, 1e-5), strict=True):
            shown = np.array([state[key][i] for state in system["states"]["x"]])
            sign = np.where(np.sum(shown * values, axis=1, keepdims=True) < 0, -1, 1) if key == "rot" else 1
            np.testing.assert_allclose(shown, sign * values, atol=tolerance)


@pytest.mark.parametrize("robot", ["half_cheetah", "ant"])
def test_a_page_shows_mujocos_poses(robot, tmp_path):
    """Twice as long as the robot is moved along x; ant's quaternion too, and its legs' joints."""
    model = mujoco.MjModel.from_xml_string(load_asset(f"{robot}.xml"))
    rng = np.random.default_rng(0)
    qpos = np.float32(model.qpos0 + rng.uniform(-0.4, 0.4, (7, model.nq)))
    if robot == "ant":
        qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    panel = film.Panel("client <3>", "before", qpos)
    (tmp_path / "a.html").write_bytes(render_html.make_writer(load_asset(f"{robot}.xml"))([[panel, panel]]))
    headings, systems = page(tmp_path / "a.html")
    assert headings == ["client <3>", "before", "before"] and len(systems) == 2
    check_system(robot, systems[1], qpos)


def test_the_command_films_the_clients(trained, restored, tmp_path, capsys):
    """The page's poses are those of `panels`, its numbers what is printed, and a second call refuses to overwrite."""
    path = tmp_path / "a.html"
    argv = ["render", str(trained), "--clients", "1,2", "--adapt-steps", "2", "--out", str(path)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out.splitlines()
    headings, systems = page(path)
    assert out == [f"{h[0]}: {h[1]}; {h[2]}" for h in (headings[:3], headings[3:])] + [str(path)]
    assert out[0].startswith("client 1, backwards: before: return ") and out[1].startswith("client 2, forwards")
    rows = film.panels(*restored, (1, 2), 2)
    for panel, system in zip(rows[0] + rows[1], systems, strict=True):
        check_system("half_cheetah", system, panel.qpos)
    content = path.read_bytes()
    assert cli.main(argv) == 2
    assert "exists" in capsys.readouterr().err and path.read_bytes() == content
    mine = tmp_path / "b.html"
    assert fedjax_rl.load(trained).render(str(mine), (1, 2), 2) == mine and mine.read_bytes() == content
    assert capsys.readouterr().out == ""  # what Python is told, it is not shown


def test_only_the_adaptation_differs(restored):
    """One initial state; before adaptation one film for all (their tasks are opposite: the control cost is shared)."""
    run, state = restored
    rows = film.panels(run, state, (0, 1), 1)
    films = [panel.qpos for row in rows for panel in row]
    assert films[0].shape == (STEPS, 9)
    for one in films[1:]:
        np.testing.assert_array_equal(one[0], films[0][0])
    np.testing.assert_array_equal(rows[0][0].qpos, rows[1][0].qpos)
    assert np.abs(films[1] - films[0]).max() > 1e-3 and np.abs(films[3] - films[1]).max() > 1e-3
    forwards, backwards = (float(row[0].model.split()[-1]) for row in rows)
    speeds = np.diff(films[0][:, 0]) / 0.05  # of all steps but the last
    np.testing.assert_allclose((forwards - backwards) / 2, speeds.sum(), atol=1.0)


def test_adaptation_is_the_evaluations_own(restored):
    """By hand: two times E episodes with the keys of `eval`, then a gradient step of the loss."""
    run, state = restored
    client, task = 3, state.tasks[3]
    params = state.server.shared
    key = simulate.stream(state.key, simulate.EVALUATE, state.round)
    for j in range(2):
        own = jax.random.fold_in(jax.random.fold_in(key, j), client)
        batch, _ = jax.jit(run.problem.sample)(params, task, own)
        slope = jax.jit(jax.grad(run.problem.loss))(params, batch)
        params = jax.tree.map(lambda p, g: p - run.config.inner_lr * g, params, slope)
    policy = gaussian_mlp(run.env.spec, hidden=run.config.hidden, activation=run.config.activation)
    shoot = jax.jit(film.make_film(run.env, policy))
    expected, returned = shoot(params, task, simulate.stream(state.key, simulate.FILM, state.round))
    panel = film.panels(run, state, (3,), 2)[0][1]
    np.testing.assert_allclose(panel.qpos[:20], expected[:20], atol=1e-3)
    assert panel.model.startswith("after 2 steps: return ") and np.isfinite(returned)


def test_a_film_is_the_rollout_and_stays_where_it_ended():
    """32 ants, thrown about until some have fallen: returns and torso x (the observation's) of the plain rollout."""
    env = make_env("ant/direction", backend="native")
    policy = gaussian_mlp(env.spec, hidden=(4,))
    params, keys = policy.init(jax.random.key(1)), jax.random.split(jax.random.key(2), 32)
    params["log_std"] = params["log_std"] + 3.0
    many = lambda one: jax.jit(jax.vmap(one, (None, None, 0)))(params, jnp.float32(1.0), keys)
    qpos, returned = many(film.make_film(env, policy))
    plain = many(make_rollout(env, policy, 1))
    np.testing.assert_allclose(returned, plain.reward.sum(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(qpos[:, :, 0], plain.obs[:, 0, :, -3], rtol=1e-4, atol=1e-5)
    lengths = plain.mask.sum(axis=(1, 2))
    fallen = int(jnp.argmin(lengths))
    assert lengths[fallen] < 90
    end = qpos[fallen, lengths[fallen] :]
    np.testing.assert_array_equal(end, jnp.broadcast_to(end[:1], end.shape))
    assert (qpos[fallen, lengths[fallen] - 1] != end[0]).any()


def test_tasks_in_words():
    robot = Dynamics(jnp.array([0.5, 2.0, 2.0]), jnp.float32(1.25), jnp.array([1.5, 1.5]))
    words = {"half_cheetah/direction": "backwards", "ant/velocity": "1.24 m/s"}
    for (env, said), task in zip(words.items(), (-1, 1.237), strict=True):
        assert make_env(env).describe(jnp.float32(task)) == said
    assert make_env("ant/dynamics").describe(robot) == "mass x1.26, friction x1.25, gear x1.50"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--out a.mp4", "out = a.mp4: the name must end in .gif or .html"),
        ("--out there/a.gif", "the directory there does not exist"),
        ("--out a.gif --client 4", "client 4 is unknown: this run has the clients 0 to 3"),
        ("--out a.gif --clients 0,-1", "client -1 is unknown"),
        ("--out a.gif --clients 0,x", "--clients 0,x: must be client numbers separated by commas"),
        ("--out a.gif --client 1 --clients 2", "--client and --clients exclude each other"),
        ("--out a.gif --best --step 1", "--best and --step exclude each other"),
        ("--out a.gif --adapt-steps 0", "adapt_steps = 0: must be an integer, at least 1"),
        ("", "--out"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(trained, line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["render", str(trained), *line.split()]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("fedjax-rl: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "a.mp4"}, "out = a.mp4: the name must end in .gif or .html"),
        ({"out": "there/a.gif"}, "out = there/a.gif: the directory there does not exist"),
        ({"out": "old.html"}, "out = old.html: it exists; remove it or choose another name"),
        ({"clients": (0, 4)}, "client 4 is unknown: this run has the clients 0 to 3"),
        ({"clients": [-1]}, "client -1 is unknown: this run has the clients 0 to 3"),
        ({"clients": ()}, "clients = (): must be the numbers of one or more clients, such as (0, 1)"),
        ({"clients": 3}, "clients = 3: must be the numbers of one or more clients, such as (0, 1)"),
        ({"adapt_steps": 0}, "adapt_steps = 0: must be an integer, at least 1"),
        ({"adapt_steps": 1.5}, "adapt_steps = 1.5: must be an integer, at least 1"),
    ],
)
def test_mistakes_in_python_are_one_line(trained, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old.html").touch()
    with pytest.raises(fedjax_rl.ConfigError) as caught:
        fedjax_rl.load(trained).render(**{"out": "a.html"} | given)
    assert str(caught.value) == message and [path.name for path in tmp_path.iterdir()] == ["old.html"]


def test_python_has_the_commands_defaults_and_asks_for_the_same_checkpoint(trained, tmp_path, monkeypatch):
    out, run = tmp_path / "a.html", fedjax_rl.load(trained)
    command, mine = RenderOptions(trained, out), inspect.signature(run.render).parameters
    assert mine["clients"].default == command.ids()
    assert [mine[name].default for name in ("adapt_steps", "step", "best")] == [command.adapt_steps, None, False]
    with pytest.raises(fedjax_rl.NoCheckpoint):
        run.render(out, step=77)
    monkeypatch.setattr(checkpoint, "best_step", lambda directory: None)
    with pytest.raises(fedjax_rl.NoCheckpoint, match="none is the best"):
        run.render(out, best=True)
    assert not out.exists()


@pytest.mark.parametrize(
    ("algorithm", "more"), [("fedavg", {"hidden": [4]}), ("independent", {"kinds": "1x4:tanh:0.1, 2x4-4:relu:0.1"})]
)
def test_what_gymnasium_draws_is_the_episode_that_was_played(algorithm, more, tmp_path, monkeypatch):
    gymnasium, pil = pytest.importorskip("gymnasium"), pytest.importorskip("PIL.Image")
    few = {"num_clients": 3, "clients_per_round": 3, "new_clients": 0, "rounds": 1, "adapt_steps": 1, **more}
    run = fedjax_rl.train(
        algorithm, "gym/CartPole-v1?horizon=60", preset="tiny", out=tmp_path / "run", quiet=True, **few
    )
    rows = film.panels(run._made, run.state(), (0, 2), 1)
    taken = []
    for before, after in rows:
        firsts = []
        for panel in (before, after):
            pictures = list(panel.pictures)
            assert pictures[-1][1] == float(panel.model.split()[-1]) == len(pictures) - 1  # CartPole pays 1 a step
            assert [paid for _, paid in pictures] == list(range(len(pictures)))
            firsts.append(pictures[0][0])
            taken.append(len(pictures))
        np.testing.assert_array_equal(*firsts)  # one initial state
    gif = run.render(tmp_path / "a.gif", (0, 2))
    with pil.open(gif) as made:
        # 50 pictures a second: every second one, and the last
        assert (made.n_frames, made.info["duration"]) == (max(taken) // 2 + 1, 40)
        assert made.size == (2 * film_gif.WIDTH, 2 * (film_gif.STRIP + film_gif.WIDTH * 400 // 600))
    with pytest.raises(fedjax_rl.ConfigError, match="one of pictures, and its name must end in"):
        run.render(tmp_path / "a.html")
    monkeypatch.setattr(gymnasium.envs.classic_control.CartPoleEnv, "render", lambda self: 1 / 0)
    with pytest.raises(fedjax_rl.ConfigError, match=r"gym/CartPole-v1 cannot be drawn \(ZeroDivisionError"):
        run.render(tmp_path / "b.gif")
    assert not (tmp_path / "b.gif").exists()


def test_what_has_no_picture_is_refused_by_name(tmp_path, capsys):
    run = fedjax_rl.train("fedavg", "navigation", preset="tiny", hidden=[4], out=tmp_path / "run", quiet=True)
    assert cli.main(["render", str(run.path), "--out", str(tmp_path / "a.html")]) == 2
    assert capsys.readouterr().err == (
        "fedjax-rl: navigation has no picture; render films what MuJoCo steps, such as half_cheetah/*, or gym/* draws\n"
    )
    with pytest.raises(fedjax_rl.ConfigError, match="navigation has no picture"):
        run.render(tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_a_missing_extra_is_named(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cli.main(["render", str(trained), "--out", str(tmp_path / "a.gif")]) == 2
    err = capsys.readouterr().err
    assert err == "fedjax-rl: a GIF needs Pillow; install it with: pip install 'fedjax-rl[render]'\n"
    with pytest.raises(fedjax_rl.ConfigError, match="a GIF needs Pillow"):
        fedjax_rl.load(trained).render(tmp_path / "a.gif")


def test_opengl_is_not_chosen_once_mujoco_is_there_and_is_tried_once(monkeypatch):
    """MuJoCo reads MUJOCO_GL when it is imported, and a second try after a failure aborts the process."""
    pytest.importorskip("PIL")
    tried = []
    monkeypatch.setattr(film_gif, "_no_opengl", functools.cache(film_gif._no_opengl.__wrapped__))
    monkeypatch.setattr(mujoco, "Renderer", lambda *given: tried.append(given) or 1 / 0)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        with pytest.raises(fedjax_rl.ConfigError, match=r"MUJOCO_GL=not set: division .* before Python starts"):
            film_gif.prepare("half_cheetah/run")
    assert len(tried) == 1 and "MUJOCO_GL" not in os.environ


def gl(trained, out, backend):
    """The command in a process of its own: MuJoCo looks at MUJOCO_GL once."""
    code = f"import os; os.environ.update({backend}); from fedjax_rl import cli; raise SystemExit(cli.main({out!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)


def test_no_opengl_is_one_line_that_names_the_page(trained, tmp_path):
    done = gl(trained, ["render", str(trained), "--out", str(tmp_path / "a.gif")], {"MUJOCO_GL": "none-such"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "MUJOCO_GL=none-such" in done.stderr and "--out NAME.html" in done.stderr and "libegl1" in done.stderr
    assert done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("floor", ["", '<geom name="ground" type="plane" size="1 1 1"/>'])
def test_a_robot_of_a_guest_needs_no_names_of_ours(floor):
    """A plane is chequered whatever its name; without a torso the camera and the light follow the first body."""
    robot = '<body name="trunk"><freejoint/><geom size=".1"/></body>'
    model = film_gif._stage(f"<mujoco><worldbody>{floor}{robot}</worldbody></mujoco>")
    assert model.geom_matid.tolist() == [0] * bool(floor) + [-1] and model.light_bodyid.tolist() == [1]

    class Renderer:
        def __init__(self):
            self.model = model

        def update_scene(self, data, camera):
            self.seen = camera.lookat.copy()

        def render(self):
            return self.seen

    [seen] = film_gif._frames(Renderer(), np.array([[3.0, 4.0, 1.0, 1.0, 0.0, 0.0, 0.0]]))
    assert seen.tolist() == [3.0, 4.0, film_gif.LOOK_AT]


def test_a_gif_plays_in_real_time_and_follows_the_torso(tmp_path):
    """Frames of 50 ms; a robot far away is seen where it is seen at the start, and the floor moves below it."""
    pil = pytest.importorskip("PIL.Image")
    code = (
        "import sys, numpy as np; from fedjax_rl.config import ConfigError\n"
        "from fedjax_rl.reports import film, film_gif\n"
        "from fedjax_rl.envs.mujoco_env import load_asset\n"
        "try: film_gif.prepare('half_cheetah/run')\n"
        "except ConfigError as error: print(error); sys.exit(5)\n"
        "qpos = np.zeros((4, 9), np.float32); qpos[1:, 0] = 1.0, 60.0, 60.5\n"
        "panel = film.Panel('client 17, forwards', 'before: return 1.0', qpos)\n"
        "write = film_gif.make_writer(load_asset('half_cheetah.xml'))\n"
        "open(sys.argv[1], 'wb').write(write([[panel, panel._replace(qpos=qpos[::-1])]]))\n"
    )
    path = tmp_path / "a.gif"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300)
    if done.returncode == 5:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr
    with pil.open(path) as gif:
        assert (gif.n_frames, gif.size) == (4, (2 * film_gif.WIDTH, film_gif.HEIGHT))
        frames = []
        for t in range(4):
            gif.seek(t)
            assert gif.info["duration"] == 50
            frames.append(np.asarray(gif.convert("RGB"), np.int16))
    # orange is the robot: more red than blue by far
    robots = [[half[..., 0] - half[..., 2] > 60 for half in np.split(frame, 2, axis=1)] for frame in frames]
    assert robots[0][0].sum() > 300
    for frame in robots:
        for half in frame:
            assert (half != robots[0][0]).sum() < 0.15 * robots[0][0].sum()
    half_tile = np.abs(frames[3][-20:, : film_gif.WIDTH] - frames[2][-20:, : film_gif.WIDTH])
    assert (half_tile.max(axis=2) > 20).mean() > 0.5  # the floor has moved by a tile, dark for light
    assert (frames[0][2:40, 2:120].max(axis=2) < 60).sum() > 100  # the label is written
