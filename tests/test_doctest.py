"""What the public docstrings show is what happens."""

import doctest

import pytest

import fedjax_rl as fr
from fedjax_rl.host import registry

pytestmark = pytest.mark.usefixtures("shared_programs")


def test_every_public_name_says_what_it_is():
    """A module, class or function of `__all__`, and every public method of the classes that are ours."""
    for name in fr.__all__:
        thing = getattr(fr, name)
        assert (thing.__doc__ or "").strip(), name
        for key, method in vars(thing).items() if name in ("Run", "Runs") else ():
            assert key.startswith("_") or key in ("path",) or method.__doc__, f"{name}.{key}"


def test_the_examples_in_public_docstrings_run(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry.OWN})
    names = {name: getattr(fr, name) for name in fr.__all__} | {"directory": tmp_path}
    tried = 0
    for name in ("train", "load", "sweep", "make_env", "register_environment"):
        for example in doctest.DocTestFinder(recurse=False).find(getattr(fr, name), name, globs=names):
            result = doctest.DocTestRunner().run(example)
            assert result.failed == 0 and result.attempted > 0, name
            tried += 1
    assert tried == 5
