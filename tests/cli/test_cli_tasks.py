"""The registry of training tasks: one file adds a task, with its recipe, its training and its check."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_recipes import write_recipe

from ctxedit.errors import ConfigError
from ctxedit.models.weights import BUILTIN_FOLDER
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


def refused(ctxedit, folder, part, task, more="", code=2):
    """What is said, before anything is built or written, of a recipe with these settings."""
    path = write_recipe(folder, part, task, data=more)
    answer = ctxedit("train", path, "--out", folder / "out", "--dry-run")
    assert answer.code == code, answer.err
    assert answer.err.count("error:") == 1 and "hint:" in answer.err and not (folder / "out").exists()
    return answer.err


AUTOENCODER = "channels = {}\nlayers = 1\nkl = 1e-5\nedges = 1.0"


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        ("[8, 16, []]", "task.channels[2] = []"),
        ("[]", "a list of 1 to 6"),
        ("[8, -16]", "task.channels[1] = -16"),
        ("[8, 12]", "a multiple of 8"),
        ("[8, 1000000000]", "task.channels[1] = 1000000000"),
        ("[8, 8, 8, 8, 8, 8]", "fewer: data.size = 16"),
        ('["8"]', "task.channels[0] = '8'"),
        ("7", "must be a list of numbers"),
    ],
)
def test_sizes_that_no_network_has_are_usage_errors(ctxedit, tmp_path, channels, said):
    assert said in refused(ctxedit, tmp_path, "autoencoder", AUTOENCODER.format(channels), "size = 16")


@pytest.mark.parametrize(
    ("part", "task", "said"),
    [
        ("clip", "width = 30\nlayers = 1\nheads = 4\npatch = 8", "task.width = 30"),
        ("captioner", "width = 30\nlayers = 1", "a multiple of 4"),
        ("captioner", "width = 32\nlayers = true", "must be a whole number"),
        ("denoiser", "channels = [16]\nlayers = 1\nhead = 8\nattend = []", "task.attend = []"),
        ("denoiser", "channels = [16]\nlayers = 1\nhead = 32\nattend = [false]", "task.head = 32"),
        ("control", "embedding = [8, 8]", "task.embedding = [8, 8]"),
        ("control", "embedding = [8, 8, 8]\nlow = 3\nhigh = 2", "task.low = 3"),
        ("decoder", "edges = nan\nssim = 0.1", "task.edges = nan"),
        ("judge", "width = 12", "a multiple of 8"),
        ("composition-judge", "width = 24", "a multiple of 16"),
        ("upscaler", "channels = [16, 16]\nlayers = [1]\nhead = 8", "task.layers = [1]"),
        ("adapter", "train = 3\nadapter = {}", "task.train = 3"),
        ("adapter", "train = []\nadapter = { width = 4000000000 }", "task.adapter.width = 4000000000"),
        ("adapter", "train = []\nadapter = { width = 30 }", "a multiple of adapter.heads"),
        ("class-encoder", 'train = []\nstart = "x"\nencoder = {}\nadapter = {}', "task.start = 'x'"),
        ("class-encoder", "train = []\ndraws = 0\nencoder = {}\nadapter = {}", "task.draws = 0"),
        ("pixel-denoiser", "channels = [32, 48]\nadapter = {}", "task.channels[1] = 48"),
    ],
)
def test_settings_that_do_not_fit_are_named(ctxedit, tmp_path, part, task, said):
    assert said in refused(ctxedit, tmp_path, part, task)


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("batch = 4", "batch = 1000000000", 5, "GiB are available"),
        ("batch = 4", "batch = 4\naccumulate = 100000000", 5, "GiB are available"),
        ("lr = 1e-3", "lr = -1e-3", 2, "schedule.lr = -0.001"),
        ("lr = 1e-3", "lr = 1e-3\nseed = -1", 2, "schedule.seed = -1"),
        ("lr = 1e-3", 'lr = 1e-3\nprecision = "fp8"', 2, "one of: no, fp16, bf16"),
        ("[data]", "[data]\nsize = 1600000000", 2, "data.size = 1600000000"),
        ('part = "judge"', "part = []", 2, "part = []"),
        ("[task]\nwidth = 8", "task = 3", 2, "must be a table"),
    ],
)
def test_schedules_and_data_that_nobody_can_train_are_refused(ctxedit, tmp_path, old, new, code, said):
    path = write_recipe(tmp_path, "judge", "width = 8")
    path.write_text(path.read_text().replace(old, new))
    answer = ctxedit("train", path, "--dry-run")
    assert answer.code == code and said in answer.err and answer.err.count("error:") == 1, answer.err


def test_a_network_that_exceeds_the_memory_is_refused_before_it_is_allocated(ctxedit, tmp_path):
    said = refused(
        ctxedit, tmp_path, "autoencoder", AUTOENCODER.format([8192] * 4).replace("= 1\n", "= 9\n"), code=5
    )
    assert "the network needs at least" in said


@pytest.mark.parametrize(
    ("part", "name", "file"),
    [
        ("decoder", "vae", "diffusion_pytorch_model.safetensors"),
        ("decoder", "vae", "config.json"),
        ("control", "unet", "diffusion_pytorch_model.safetensors"),
        ("captioner", "clip", "tokenizer.json"),
        ("denoiser", "text_encoder", "model.safetensors"),
    ],
)
def test_a_damaged_component_is_named(ctxedit, tmp_path, part, name, file):
    models = tmp_path / "models"
    shutil.copytree(BUILTIN_FOLDER / name, models / name)
    (models / name / file).write_bytes((models / name / file).read_bytes()[:100])
    answer = ctxedit("train", part, "--out", models, "--dry-run")
    assert answer.code == 4 and f"{models / name} cannot be loaded" in answer.err, answer.err


def test_a_component_that_lacks_a_weight_or_is_a_pickle_is_refused(ctxedit, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(BUILTIN_FOLDER / "vae", models / "vae")
    file = models / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "decoder.conv_in.bias"}, file)
    lacking = ctxedit("train", "decoder", "--out", models, "--dry-run")
    assert lacking.code == 4 and "decoder.conv_in.bias" in lacking.err, lacking.err
    file.unlink()
    torch.save(tensors, file.with_suffix(".bin"))
    assert ctxedit("train", "decoder", "--out", models, "--dry-run").code == 4


def test_damaged_weights_to_start_from_are_named(ctxedit, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(BUILTIN_FOLDER / "judge", models / "judge")
    file = models / "judge" / "judge.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    answer = ctxedit("train", "judge", "--out", models, "--warm", "-y", "--steps", 1)
    assert answer.code == 4 and "judge.safetensors cannot be loaded" in answer.err, answer.err


def test_a_mistake_in_a_task_is_not_taken_for_a_wrong_recipe(toy, ctxedit):
    file = Path(package.__path__[-1]) / "palette.py"
    file.write_text(file.read_text().replace("torch.full((3,), start)", "torch.full((3,), start).view(2)"))
    answer = ctxedit("train", "palette", "--dry-run")
    assert answer.code == 1 and "shape" in answer.err


def test_a_task_says_what_its_settings_may_be(toy, ctxedit):
    file = Path(package.__path__[-1]) / "palette.py"
    typed = "from typing import Annotated\nfrom ctxedit.config import Range\n" + file.read_text()
    file.write_text(typed.replace("*, start", "*, start: Annotated[float, Range(0, 1)]"))
    Path("mine.toml").write_text(tasks.get("palette").recipe_text().replace("start = 0.0", "start = 2"))
    answer = ctxedit("train", "mine.toml", "--dry-run")
    assert answer.code == 2 and "task.start = 2.0" in answer.err and "from 0 to 1" in answer.err
