"""The worked example of presets/README.md, installed as a package: its pattern, preset and metric work."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "presets" / "README.md").read_text()


def block(language, holding):
    """The code block of the page that holds a text."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    return next(text for text in found if holding in text)


def test_the_example_of_ones_own_method_works(tmp_path):
    package, about = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text("")
    (package / "patterns.py").write_text(block("python", '@pattern("anchored")'))
    (package / "metrics.py").write_text(block("python", '@metric("brightness"'))
    points = block("toml", "entry-points")
    groups = re.sub(r'\[project\.entry-points\."(.+?)"\]', r"[\1]", points).replace('"', "")
    (about / "entry_points.txt").write_text(groups)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (tmp_path / "mine.toml").write_text(block("toml", 'frames = "anchored"'))
    code = """
import sys
from ctxedit.cli import main
from ctxedit.config import load
from ctxedit.patterns import attended_frames
config = load("mine.toml", environ={})
assert (config.fusion.self_replace_steps, config.adapter.enabled) == (0.3, True)
assert attended_frames(config.attention, 4) == ((0,), (0, 1), (0, 1, 2), (0, 2, 3))
call = ["run", sys.argv[1], "a cat", "--prompt", "a tiger", "--frames", "4", "--dry-run"]
assert main([*call, "--preset", "mine.toml"]) == 0
assert main(["eval", "--metrics", "help"]) == 0
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    sample = ROOT / "samples" / "tiger-beach.mp4"
    done = subprocess.run(
        [sys.executable, "-c", code, sample], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "brightness" in done.stdout and "4 frames" in done.stdout
