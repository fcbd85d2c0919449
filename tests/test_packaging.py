"""What a wheel contains."""

import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def test_every_package_is_in_the_wheel():
    project = ROOT / "pyproject.toml"
    if not project.is_file():
        pytest.skip("not a source checkout")
    listed = set(tomllib.loads(project.read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("ctxedit/**/__init__.py")}
    assert found <= listed
    assert listed - found == {"ctxedit.presets"}, "the presets are mapped from a folder of their own"
