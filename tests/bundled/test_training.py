"""The training loop and every recipe: losses fall, a resumed run is the unbroken run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ctxedit.bundled.training import recipe, tokenizer
from ctxedit.bundled.training.data import Scenes
from ctxedit.bundled.training.loop import Schedule, learning_rate, train
from ctxedit.errors import ConfigError, NumericsError
from ctxedit.models.weights import BUILTIN_FOLDER


class Line(Dataset):
    def __len__(self):
        return 10_000

    def __getitem__(self, i):
        x = torch.tensor([float(i % 7) - 3])
        return {"x": x, "y": 2 * x + 1}


class LineTask:
    """The smallest task there is: a line."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)

    def dataset(self, seed):
        return Line()

    def loss(self, model, batch, generator):
        noise = 0.01 * torch.randn(batch["y"].shape, generator=generator)
        loss = ((model(batch["x"]) - batch["y"] - noise) ** 2).mean()
        return loss, {"loss": loss.item()}

    def export(self, model, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "w.pt")


LINE = Schedule(steps=120, batch=8, lr=0.05, warmup=5, ema=0.9, workers=0)


def test_the_loop_learns(tmp_path):
    model = train(LineTask(), LINE, tmp_path / "s", tmp_path / "w")
    assert model.weight.item() == pytest.approx(2, abs=0.05)
    assert (tmp_path / "w" / "w.pt").exists() and (tmp_path / "s" / "metrics.jsonl").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_training_is_bit_identical(tmp_path, accumulate):
    schedule = replace(LINE, accumulate=accumulate)
    whole = train(LineTask(), schedule, tmp_path / "a", tmp_path / "wa")
    train(LineTask(), schedule, tmp_path / "b", tmp_path / "wb", stop_after=43)
    broken = train(LineTask(), schedule, tmp_path / "b", tmp_path / "wb")
    for a, b in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nan_stops_and_keeps_the_last_state(tmp_path):
    task = LineTask()
    train(task, LINE, tmp_path / "s", tmp_path / "w", stop_after=10)
    before = (tmp_path / "s" / "state.pt").read_bytes()
    broken = LineTask()
    broken.loss = lambda model, batch, generator: (model(batch["x"]).sum() * float("nan"), {"loss": 0.0})
    with pytest.raises(NumericsError, match="step 10"):
        train(broken, LINE, tmp_path / "s", tmp_path / "w")
    assert (tmp_path / "s" / "state.pt").read_bytes() == before


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    assert learning_rate(0, LINE) == pytest.approx(0.01)
    assert learning_rate(5, LINE) == pytest.approx(0.05)
    assert learning_rate(120, LINE) == pytest.approx(0.005)


def test_scenes_are_a_function_of_seed_and_index():
    a, b = Scenes(1)[5], Scenes(1)[5]
    assert torch.equal(a["image"], b["image"]) and a["caption"] == b["caption"]
    assert not torch.equal(a["image"], Scenes(2)[5]["image"])
    wrong = Scenes(1, wrong=True)
    assert all(wrong[i]["caption"] != wrong[i]["wrong"] for i in range(40))


@pytest.mark.parametrize("part", recipe.ORDER)
def test_a_few_steps_of_every_recipe_lower_its_loss(part, tmp_path):
    chosen = recipe.load(recipe.RECIPES / f"{part}.toml")
    weights = tmp_path / "weights"
    weights.mkdir()
    for folder in ("vae", "clip", "unet"):
        (weights / folder).symlink_to(BUILTIN_FOLDER / folder) if part != "clip" else None
    torch.manual_seed(0)
    task = recipe.make_task(chosen, weights)
    # A tiny set, seen again and again, with the same noise.
    batch = next(iter(DataLoader(task.dataset(0), batch_size=8, sampler=range(8))))
    optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(6):
        loss, _ = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    task.export(task.model, weights / "out")
    assert list((weights / "out").glob("*.safetensors"))


@pytest.mark.parametrize("part", recipe.ORDER)
def test_a_warm_start_begins_with_the_weights_there_are(part, tmp_path):
    if not (BUILTIN_FOLDER / recipe.FOLDERS[part]).is_dir():
        pytest.skip(f"the package carries no weights of the {part} yet")
    chosen = recipe.load(recipe.RECIPES / f"{part}.toml")
    weights = tmp_path / "weights"
    weights.mkdir()
    for folder in ("vae", "clip", "unet"):
        if part != "clip":
            (weights / folder).symlink_to(BUILTIN_FOLDER / folder)
    torch.manual_seed(1)
    model = recipe.make_task(chosen, weights).model
    before = torch.cat([p.flatten() for p in model.parameters()])
    recipe.warm_start(model, BUILTIN_FOLDER / recipe.FOLDERS[part])
    after = torch.cat([p.flatten() for p in model.parameters()])
    assert (before != after).float().mean() > 0.9
    assert torch.equal(after, after.half().float()), "the shipped weights are half precision"
    with pytest.raises(ConfigError, match="does not fit"):
        recipe.warm_start(torch.nn.Linear(2, 2), BUILTIN_FOLDER / recipe.FOLDERS[part])


def test_bad_recipes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no recipe"):
        recipe.load(tmp_path / "none.toml")
    (tmp_path / "odd.toml").write_text('part = "autoencoder"\n[task]\n[schedule]\nstepz = 3\n')
    with pytest.raises(ConfigError, match="stepz"):
        recipe.load(tmp_path / "odd.toml")


def test_the_tokenizer_takes_any_text(tmp_path: Path):
    words = tokenizer.build(tmp_path, captions=3000)
    for text in ("a tiger walking on the beach", "größe 日本 🐅 xyzzy!", "A TIGER"):
        back = words.decode(words(text).input_ids, skip_special_tokens=True)
        assert back.replace(" ", "") == text.lower().replace(" ", "")
    # Words of the world are one token each.
    assert len(words("tiger").input_ids) == 3
