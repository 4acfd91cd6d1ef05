"""Checkpoints: whole, damaged, pruned, and of another network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rl.runs import checkpoint, digest
from fedjax_rl.runs.arrays import state_hash


def make_state(fill, width=3):
    return {
        "server": (jnp.full((2, width), fill, jnp.float32), jnp.asarray(7, jnp.int32)),
        "clients": {"none": jnp.zeros((4, 0)), "odd": jnp.asarray([jnp.inf, -0.0, 1e-42], jnp.float32)},
        "key": jax.random.key(5),
    }


@pytest.fixture
def saved(tmp_path):
    directory = tmp_path / "ckpt"
    directory.mkdir()
    for step in (1, 2):
        checkpoint.save(directory, step, make_state(float(step)))
    return directory


def load(directory, like=None, step=None, part=False):
    lines = []
    like = jax.eval_shape(lambda: make_state(0.0)) if like is None else like
    return checkpoint.restore(directory, like, lines.append, step, part=part), lines


def test_the_whole_state_comes_back_bit_for_bit(saved):
    restored, lines = load(saved)
    assert restored.step == 2
    assert lines == []
    assert state_hash(restored.state) == state_hash(make_state(2.0))
    assert jax.tree.structure(restored.state) == jax.tree.structure(make_state(2.0))
    drawn = [jax.random.normal(s["key"], (3,)) for s in (restored.state, make_state(2.0))]
    np.testing.assert_array_equal(*drawn)


def test_the_hash_sees_one_bit():
    state = make_state(1.0)
    other = {**state, "server": (state["server"][0].at[0, 0].set(np.nextafter(np.float32(1), np.float32(2))), 7)}
    other["server"] = (other["server"][0], state["server"][1])
    assert state_hash(other) != state_hash(state)


def test_an_older_step_can_be_asked_for(saved):
    assert load(saved, step=1)[0].state["server"][0][0, 0] == 1.0


def files_of(directory, step):
    return sorted(p for p in (directory / str(step)).rglob("*") if p.is_file() and p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flip": flip,
    "truncate": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "empty": lambda p: p.write_bytes(b""),
    "delete": lambda p: p.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_falls_back_and_names_it(saved, kind):
    contents = {p: p.read_bytes() for p in files_of(saved, 2)}
    for path, data in contents.items():
        DAMAGE[kind](path)
        restored, lines = load(saved)
        assert (restored.step, float(restored.state["server"][0][0, 0])) == (1, 1.0)
        assert len(lines) == 1
        assert str(path.relative_to(saved / "2")) in lines[0]
        assert lines[0].endswith("using step 1 instead")
        path.write_bytes(data)
    assert load(saved)[0].step == 2


def test_a_step_without_a_digest_is_unfinished(saved):
    (saved / "2.digest.json").unlink()
    restored, lines = load(saved)
    assert restored.step == 1
    assert len(lines) == 1 and "2 rejected: it has no digest" in lines[0]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2, "files": {}}', '{"schema": 3, "files": {}}', "[1]"])
def test_a_damaged_digest_falls_back(saved, text):
    (saved / "2.digest.json").write_text(text)
    restored, lines = load(saved)
    assert restored.step == 1
    assert len(lines) == 1


def test_no_flipped_bit_of_a_digest_is_silent(saved):
    """Of the score and of the step's number too, which no other hash covers. Every 11th bit meets all of a byte's."""
    checkpoint.set_score(saved, 2, 1.5)
    path = saved / "2.digest.json"
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 11):
        path.write_bytes(bytes([b ^ (1 << place % 8) if i == place // 8 else b for i, b in enumerate(whole)]))
        with pytest.raises(ValueError, match=r"2\.digest\.json"):
            digest.read(saved, 2)
    assert checkpoint.best_step(saved) is None
    with pytest.raises(checkpoint.NoCheckpoint, match="was evaluated, so none is the best"):
        checkpoint.asked_step(saved, None, best=True)
    path.write_bytes(whole)
    assert checkpoint.best_step(saved) == checkpoint.asked_step(saved, None, best=True) == 2
    assert (checkpoint.asked_step(saved, 7, best=False), checkpoint.asked_step(saved, None, best=False)) == (7, None)


def test_a_part_is_read_without_the_rest(saved):
    like = jax.eval_shape(lambda: make_state(0.0))
    wanted = {**like, "server": (like["server"][0], ())}
    assert load(saved, {**wanted, "clients": ()}, part=True)[0].state["server"][0][0, 0] == 2.0
    with pytest.raises(checkpoint.NoCheckpoint):
        load(saved, {**like, "more": like["server"]}, part=True)
    lines = []
    with pytest.raises(checkpoint.NoCheckpoint):
        checkpoint.restore(saved, wanted, lines.append)
    assert "server.1 is ((), 'int32') there and None in this configuration" in lines[0]


def test_nothing_usable_is_said(saved):
    for step in (1, 2):
        flip(files_of(saved, step)[0])
    lines = []
    with pytest.raises(checkpoint.NoCheckpoint):
        checkpoint.restore(saved, jax.eval_shape(lambda: make_state(0.0)), lines.append)
    assert len(lines) == 2


def test_another_network_is_refused_by_name(saved):
    lines = []
    with pytest.raises(checkpoint.NoCheckpoint):
        checkpoint.restore(saved, jax.eval_shape(lambda: make_state(0.0, width=4)), lines.append)
    assert "server.0 is ((2, 3), 'float32') there and ((2, 4), 'float32') in this configuration" in lines[0]


def test_the_newest_three_and_the_best_are_kept(tmp_path):
    for step, score in enumerate([1.0, 9.0, 2.0, None, 3.0, 4.0], start=1):
        checkpoint.save(tmp_path, step, make_state(float(step)), score)
    assert checkpoint.steps(tmp_path) == [6, 5, 4, 2]
    assert checkpoint.best_step(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "4", "5", "6"]
    checkpoint.set_score(tmp_path, 6, 10.0)
    assert checkpoint.best_step(tmp_path) == 6
    assert load(tmp_path)[0].step == 6


def test_multiples_of_keep_every_are_kept(tmp_path):
    for step in range(1, 10):
        checkpoint.save(tmp_path, step, make_state(float(step)), keep_every=4)
    assert checkpoint.steps(tmp_path) == [9, 8, 7, 4]


def test_the_configuration_is_kept_with_the_newest_sound_step(saved):
    assert checkpoint.saved_config(saved) == ""
    checkpoint.save(saved, 3, make_state(3.0), config="a = 1")
    checkpoint.save(saved, 4, make_state(4.0), config="a = 2")
    checkpoint.set_score(saved, 4, 1.0)
    assert checkpoint.saved_config(saved) == "a = 2"
    (saved / "4.digest.json").write_text("{")
    assert checkpoint.saved_config(saved) == "a = 1"


def test_a_rejected_step_is_set_aside_not_deleted(saved):
    flip(files_of(saved, 2)[0])
    broken = files_of(saved, 2)[0].read_bytes()
    name = files_of(saved, 2)[0].relative_to(saved / "2")
    checkpoint.save(saved, 2, make_state(5.0))
    assert float(load(saved)[0].state["server"][0][0, 0]) == 5.0
    kept = [p for p in (saved.parent / "rejected").iterdir() if p.is_dir()]
    assert [(p / name).read_bytes() for p in kept] == [broken]


def test_the_digest_lists_every_file(saved):
    record = json.loads((saved / "2.digest.json").read_text())
    on_disk = {str(p.relative_to(saved / "2")) for p in (saved / "2").rglob("*") if p.is_file()}
    assert set(record["files"]) == on_disk
    assert record["step"] == 2


def test_a_probe_takes_back_its_own_directories_and_no_others(tmp_path, monkeypatch):
    checkpoint.probe(tmp_path / "runs/one")
    assert not (tmp_path / "runs").exists()
    write, other = checkpoint._write, tmp_path / "runs/two/config.toml"

    def beside(*args):
        write(*args)
        other.parent.mkdir()
        other.write_text("another run began meanwhile")

    monkeypatch.setattr(checkpoint, "_write", beside)
    checkpoint.probe(tmp_path / "runs/one")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [other]
    assert not (tmp_path / "runs/one").exists()
