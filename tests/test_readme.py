"""The README shows real files, whole."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", ["algorithms/fedprox.py", "envs/navigation.py"])
def test_readme_shows_the_file_as_it_is(path):
    source = (ROOT / "src" / "fedjax_rl" / path).read_text().strip()
    assert f"```python\n{source}\n```" in (ROOT / "README.md").read_text()
