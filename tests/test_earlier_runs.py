"""Run directories that earlier versions made: they load, go on, are evaluated and reported for ever.

Each is one archive in fixtures/, with the hash of the state in its newest checkpoint. Never make them anew.
"""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fedjax_rl.cli import main
from fedjax_rl.runs import assemble, checkpoint, rundir
from fedjax_rl.runs.arrays import state_hash

FIXTURES = {
    "schema1": "36cf8d27ac35bbf543fe41a2a6e903e02846ba40c432278b91c99763624bb5bd",  # Ditto, the first digests
    "schema2": "727f4d127fbcb7d0bad80b304d1682f467e3f228db55cf859aa43bdc53eb3809",  # FMRL with local critics
    "before_rooms": "8dda601b1eb29b5d8782fa8968bb91ab8c67a3833d08acac4d18f98dcb9e4f1a",  # FMRL, whole: records too
}


@pytest.fixture
def unpacked(tmp_path):
    def unpack(name: str) -> Path:
        with tarfile.open(Path(__file__).parent / "fixtures" / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name

    return unpack


@pytest.mark.parametrize("name", FIXTURES)
def test_checkpoints_of_every_schema_load(unpacked, name):
    run = unpacked(name)
    like = assemble.abstract_state(assemble.make_run(rundir.open_run(run)))
    restored = checkpoint.restore(run / "ckpt", like, pytest.fail)
    assert (restored.step, state_hash(restored.state)) == (2, FIXTURES[name])


def test_a_whole_run_goes_on_is_evaluated_and_reported(unpacked, capsys):
    """Its own last evaluation comes out of eval again; its two rounds stay as they were beside the third."""
    run = unpacked("before_rooms")
    final = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["eval", str(run), "--json"]) == 0
    returns = json.loads(capsys.readouterr().out)["returns"]
    np.testing.assert_allclose(returns, final["eval/returns"], rtol=1e-4)
    assert main(["report", str(run), "--format", "csv"]) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (row["env_steps"], row["num_clients"]) == ("3200", "8")
    assert main(["resume", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env_steps"] == 3200
    assert main(["resume", str(run), "--rounds", "3", "--quiet"]) == 0
    assert "lost" not in capsys.readouterr().err  # it had no participants
    after = (run / "metrics.jsonl").read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 3
