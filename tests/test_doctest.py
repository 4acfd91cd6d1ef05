"""What the public docstrings say is complete, and what they show is what happens."""

import dataclasses
import doctest
import inspect
import re
import types
from typing import Any

import fedjax_rl as fr
from fedjax_rl.host import registry

# in this order: the first makes the run that others open
EXAMPLES = """
    train sweep load Run Run.policy make_env make_problem make_simulation Config Env EnvSpec
    register_aggregator register_algorithm register_environment register_policy parts.chunked parts.local_change
    parts.measured tasks.directions tasks.forwards tasks.ranges tasks.say_direction tasks.say_speed tasks.uniform
    testing.check_environment
""".split()


def described() -> dict[str, Any]:
    """Everything public by the name that people write after `fr.`: names, functions of modules, methods of classes."""
    found = {name: getattr(fr, name) for name in fr.__all__}
    for name, thing in [*found.items()]:
        if isinstance(thing, types.ModuleType):
            own = [key for key, value in vars(thing).items() if getattr(value, "__module__", "") == thing.__name__]
            keys = getattr(thing, "__all__", own)
        else:
            keys = vars(thing) if name in ("Run", "Runs", "Callback", "Logger", "TensorBoard", "WandB") else ()
        found |= {f"{name}.{key}": getattr(thing, key) for key in keys if not key.startswith("_")}
    return found


def parameters(thing: Any) -> list[str]:
    """What a person passes to a function or to a class of ours; a configuration's options are said elsewhere."""
    if thing is fr.Config or isinstance(thing, property | types.ModuleType):
        return []
    if inspect.isclass(thing) and not hasattr(thing, "_fields") and not dataclasses.is_dataclass(thing):
        if "__init__" not in vars(thing) or getattr(thing, "_is_protocol", False):
            return []
    return [name for name in inspect.signature(thing).parameters if name != "self"]


SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:  .*\n?)+)", re.M)


def faults(thing: Any) -> list[str]:
    """What a docstring lacks: a first line, each parameter by its name and no other, what is returned; and types."""
    text = inspect.getdoc(thing) or ""
    first, sections = text.split("\n")[0], dict(SECTION.findall(text))
    found = [] if first.endswith((".", "?")) else [f"first line: {first!r}"]
    listed = sections.get("Attributes" if inspect.isclass(thing) and "Args" not in sections else "Args", "")
    named = [name for line in re.findall(r"^  (\w[\w, ]*): ", listed, re.M) for name in line.split(", ")]
    if sorted(named) != sorted(parameters(thing)):
        found.append(f"parameters {parameters(thing)}, described {named}")
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        typed = {"self", *inspect.unwrap(thing).__annotations__}
        found += [f"no type of {name}" for name in ["return", *signature.parameters] if name not in typed]
        found += ["no Returns"] if signature.return_annotation is not None and "Returns" not in sections else []
    return found


def test_public_docstrings_are_complete():
    """Loggers of ours have the methods of `Logger`, which says what they are given."""
    told = {f"{name}.{key}" for name in ("TensorBoard", "WandB") for key in vars(fr.Logger)}
    found = {name: faults(thing) for name, thing in described().items() if name not in told}
    assert {name: lacks for name, lacks in found.items() if lacks} == {}
    assert len(found) > 60 and all(described()[name].__doc__ for name in told & {*described()})


def test_every_option_has_a_comment():
    """`--help` shows it: on the option's line, or above."""
    lines = inspect.getsource(fr.Config).splitlines()
    for item in dataclasses.fields(fr.Config):
        [at] = [i for i, line in enumerate(lines) if line.startswith(f"    {item.name}: ")]
        assert "  # " in lines[at] or lines[at - 1].startswith("    # "), item.name


def test_what_a_docstring_lacks_is_found():
    def good(size: int, *more: int) -> int:
        """Do it.

        Args:
          size, more: numbers.

        Returns:
          A number.
        """

    text = good.__doc__
    assert faults(good) == []
    for broken, lack in (
        (text.replace("Do it.", "Do it"), "first line: 'Do it'"),
        (text.replace("size, more", "size"), "parameters ['size', 'more'], described ['size']"),
        (text.replace("size, more", "size, more, less"), "described ['size', 'more', 'less']"),
        (text.replace("Returns:", ""), "no Returns"),
        ("", "first line: ''"),
    ):
        good.__doc__ = broken
        assert any(lack in line for line in faults(good)), lack
    del good.__annotations__["size"]
    assert "no type of size" in faults(good)


def test_the_examples_in_public_docstrings_run(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry.OWN})
    names = {name: getattr(fr, name) for name in fr.__all__} | {"directory": tmp_path}
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    found = {name: finder.find(thing, name, globs=names)[0] for name, thing in described().items() if thing.__doc__}
    assert {name for name, example in found.items() if example.examples} == {*EXAMPLES}
    for name in EXAMPLES:
        assert runner.run(found[name]).failed == 0, name
