"""The registry of training tasks: one file adds a task, with its recipe, its training and its check."""

import json
import sys

import pytest

from ctxedit.errors import ConfigError
from ctxedit.training import recipe
from ctxedit.training import tasks as package
from ctxedit.training.components import Components
from ctxedit.training.data import DataConfig
from ctxedit.training.tasks import base as tasks

#: A complete task: it learns the mean colour of the images.
TOY = '''
import torch
from safetensors.torch import load_file, save_file

from ctxedit.training.checks.base import Check, CheckRow
from ctxedit.training.data import Data, Scenes
from ctxedit.training.tasks.base import Task, register


def measure(config, reporter):
    mean = load_file(config.find("palette") / "palette.safetensors")["mean"]
    yield CheckRow("palette", "channels learned", float((mean.abs() <= 1).sum()), 3.0, config.count)


@register("palette")
class PaletteTask(Task):
    folder = "palette"
    requires = ("vae",)
    recipe = """
part = "palette"
about = "the mean colour of images"
[task]
start = 0.0
[schedule]
steps = 3
batch = 2
lr = 0.1
workers = 0
"""

    def __init__(self, components, data, *, start):
        self.data = Data(data, Scenes, captions=False)
        self.model = torch.nn.Module()
        self.model.mean = torch.nn.Parameter(torch.full((3,), start))

    def loss(self, model, batch, generator):
        loss = ((batch["image"].mean((0, 2, 3)) - model.mean) ** 2).mean()
        return loss, {"loss": loss.item()}

    def export(self, model, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "palette.safetensors")

    @classmethod
    def checks(cls):
        return (Check("palette", ("palette",), measure),)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy's file, as if it lay among the built-in tasks."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "palette.py").write_text(TOY)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "tasks")])
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop(f"{package.__name__}.palette", None)


def test_one_file_adds_a_task(toy, ctxedit, tmp_path):
    listed = {r["recipe"]: r for r in ctxedit("train", "--list", "--json").table["recipes"]}
    assert listed["palette"]["about"] == "the mean colour of images"
    plan = ctxedit("train", "palette", "--dry-run", "--json").table
    assert (plan["parameters"], plan["steps"]) == (3, 3)
    trained = ctxedit("train", "palette", "--json")
    assert trained.code == 0 and trained.table["steps"] == 3, trained.err
    record = json.loads((tmp_path / "weights-palette/palette/training.json").read_text())
    assert record["part"] == "palette" and record["built_on"]["vae"]
    checked = ctxedit(
        "models", "check", "--part", "palette", "--weights", "weights-palette", "--save", "--json"
    )
    assert checked.code == 0, checked.err
    assert [row["figure"] for row in checked.table["checked"]] == ["channels learned"]
    saved = json.loads((tmp_path / "weights-palette/check.json").read_text())["rows"]
    assert list(saved[0]["files"]) == ["palette/palette.safetensors"]


def test_tasks_come_after_those_that_they_build_on(toy):
    order = tasks.names()
    for earlier, later in [
        ("autoencoder", "decoder"), ("clip", "captioner"), ("decoder", "denoiser"), ("clip", "denoiser"),
        ("denoiser", "control"), ("denoiser", "adapter"), ("autoencoder", "palette"),
    ]:  # fmt: skip
        assert order.index(earlier) < order.index(later)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="already a task named 'clip'"):
        tasks.register("clip")(type("Other", (tasks.Task,), {"__module__": "elsewhere"}))
    with pytest.raises(ConfigError, match="no part named 'ear'"):
        tasks.get("ear")


@pytest.mark.parametrize("name", [name for name in tasks.names() if tasks.get(name).recipe_text()])
def test_settings_are_checked_before_a_task_is_built(name, tmp_path):
    task, settings = tasks.get(name), recipe.resolve(name).task
    components = Components(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown setting task\.colour") as unknown:
        task.build(components, DataConfig(), {**settings, "colour": 1})
    assert all(key in unknown.value.hint for key in settings)
    with pytest.raises(ConfigError, match=r"missing setting task\."):
        task.build(components, DataConfig(), {})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("channels", ["[8, 16, []]", "[]", "[8, -16]", '["8"]', "7"])
def test_sizes_that_no_network_has_are_usage_errors(ctxedit, tmp_path, channels):
    (tmp_path / "mine.toml").write_text(
        f"""part = "autoencoder"
[task]
channels = {channels}
layers = 1
kl = 1e-5
edges = 1.0
[schedule]
steps = 1
batch = 2
lr = 1e-3
warmup = 1
[data]
"""
    )
    answer = ctxedit("train", tmp_path / "mine.toml", "--out", tmp_path / "out", "--dry-run")
    assert answer.code == 2 and "[task] of autoencoder" in answer.err, answer.err
    assert not (tmp_path / "out").exists()
