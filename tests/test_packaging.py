"""What a wheel contains."""

import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
#: Packages without modules, for their files.
DATA = ("ctxedit.bundled.weights", "ctxedit.synthetic.sprites", "ctxedit.training.recipes")


def test_every_package_is_in_the_wheel():
    project = ROOT / "pyproject.toml"
    if not project.is_file():
        pytest.skip("not a source checkout")
    listed = set(tomllib.loads(project.read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("ctxedit/**/__init__.py")}
    assert found <= listed
    # The presets are mapped from a folder of their own.
    assert all(name == "ctxedit.presets" or name.startswith(DATA) for name in listed - found)


def test_every_data_file_is_in_the_wheel(tmp_path, monkeypatch):
    """What setuptools would copy, asked of it without building."""
    setuptools = pytest.importorskip("setuptools")
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a source checkout")
    monkeypatch.chdir(ROOT)
    project = setuptools.Distribution({"script_name": "setup.py"})
    project.parse_config_files()
    project.get_command_obj("egg_info").egg_base = str(tmp_path)
    build = project.get_command_obj("build_py")
    build.ensure_finalized()
    copied = {ROOT / source / name for _, source, _, names in build.data_files for name in names}
    folders = [ROOT / name.replace(".", "/") for name in DATA]
    wanted = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    wanted = {file for file in wanted if "__pycache__" not in file.parts}
    wanted |= {*ROOT.glob("presets/*.toml"), *ROOT.glob("ctxedit/bench/*.html"), ROOT / "ctxedit/py.typed"}
    assert len(wanted) > 100 and wanted <= copied, sorted(wanted - copied)
    # A folder whose name could be imported is left out, with a warning, unless it is listed as a package.
    holding = {".".join(file.parent.relative_to(ROOT).parts) for file in wanted}
    importable = {name for name in holding if all(map(str.isidentifier, name.split(".")))}
    assert importable - {"presets"} <= set(project.packages)
