"""A guest's own tests: the contracts, and twenty rounds that learn something."""

from fedjax_rl_windy.fedsign import fedsign
from fedjax_rl_windy.windy import windy

import fedjax_rl as fr


def test_the_contracts_hold():
    fr.testing.check_environment(windy())
    fr.testing.check_algorithm(fedsign)


def test_twenty_rounds_bring_clients_nearer_to_the_origin(tmp_path):
    values = {"rounds": 20, "episodes": 20, "hidden": [16], "local_lr": 0.05, "server": "sgd", "server_lr": 0.5}
    run = fr.train("fedsign", "windy", preset="tiny", scale=0.05, out=tmp_path / "run", quiet=True, **values)
    returns = run.history["train/return/adapt_0"]
    assert returns[-5:].mean() > returns[:5].mean()
