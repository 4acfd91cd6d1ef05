"""The README's example runs as it stands, and the page for guests shows real files, whole."""

import re
from pathlib import Path

import pytest

from fedjax_rl.host import registry

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples" / "plugin"


@pytest.mark.parametrize(
    "path", ["src/fedjax_rl_windy/windy.py", "src/fedjax_rl_windy/fedsign.py", "tests/test_windy.py"]
)
def test_the_page_for_guests_shows_the_file_as_it_is(path):
    source = (PLUGIN / path).read_text().strip()
    assert f"```python\n{source}\n```" in (ROOT / "docs" / "guests.md").read_text()
    assert len(source.splitlines()) <= 40


def test_the_example_in_python_gives_what_its_comments_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry.OWN})
    [source] = re.findall(r"<!-- python example -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    definitions, calls = source.split("run = ")
    space: dict = {}
    exec(definitions, space)
    *lines, last = ("run = " + calls).strip().splitlines()
    shapes = []
    for line in lines:
        code, _, comment = line.partition("#")
        if wanted := re.match(r" \[([\d, ]+)\]", comment):
            shapes.append((eval(code, space).shape, tuple(int(part) for part in wanted[1].split(","))))
        else:
            exec(code, space)
    assert [found for found, _ in shapes] == [wanted for _, wanted in shapes] and len(shapes) == 3
    assert len(space["run"].history["round"]) == 10
    assert {row["seeds"] for row in eval(last, space)} == {2}
