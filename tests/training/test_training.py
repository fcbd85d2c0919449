"""The training loop and every recipe: losses fall, a resumed run equals an uninterrupted one."""

import errno
import json
import multiprocessing
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ctxedit.errors import ConfigError, NumericsError, OutputError, ResourceError
from ctxedit.models.weights import BUILTIN_FOLDER
from ctxedit.training import recipe, tokenizer
from ctxedit.training.data import Scenes
from ctxedit.training.job import Training
from ctxedit.training.loop import make_accelerator, read_state, train
from ctxedit.training.schedule import Schedule, lr_scheduler
from ctxedit.training.tasks import base as tasks


class Line(Dataset):
    def __len__(self):
        return 10_000

    def __getitem__(self, i):
        x = torch.tensor([float(i % 7) - 3])
        return {"x": x, "y": 2 * x + 1}


class LineTask:
    """The smallest task: fitting a line."""

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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("place", ["s", "w"])
@pytest.mark.parametrize("words", ["PytorchStreamWriter failed writing file", None], ids=["torch", "errno"])
def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path, monkeypatch, place, words):
    """Writing the state or the weights fails half way: the old files are kept."""
    train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", stop_after=10)
    before = contents(tmp_path / place)
    before.pop("metrics.jsonl", None)
    save = torch.save

    def full(blob, to):
        path = to if isinstance(to, Path) else Path(to.name)
        if (path.suffix == ".pt") and (("step" in blob) == (place == "s")):
            path.write_bytes(b"half of it")
            raise RuntimeError(words) if words else OSError(errno.ENOSPC, "No space left on device")
        save(blob, to)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError):
        train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", stop_after=20)
    after = contents(tmp_path / place)
    after.pop("metrics.jsonl", None)
    assert after == before, "nothing half written, nothing left over"
    monkeypatch.undo()
    ended = train(LineTask(), LINE, tmp_path / "s", tmp_path / "w")
    whole = train(LineTask(), LINE, tmp_path / "s2", tmp_path / "w2")
    assert torch.equal(ended.weight, whole.weight)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interrupted_training_is_saved_first(tmp_path, number, error):
    task = LineTask()
    told = task.loss

    calls = []

    def interrupted(model, batch, generator):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return told(model, batch, generator)

    task.loss = interrupted
    before = signal.getsignal(number)
    with pytest.raises(error):
        train(task, LINE, tmp_path / "s", tmp_path / "w")
    assert signal.getsignal(number) is before
    step = torch.load(tmp_path / "s" / "state.pt")["step"]
    assert step == 3 and (tmp_path / "w" / "w.pt").exists()
    ended = train(LineTask(), LINE, tmp_path / "s", tmp_path / "w")
    whole = train(LineTask(), LINE, tmp_path / "s2", tmp_path / "w2")
    assert torch.equal(ended.weight, whole.weight)


def test_metrics_after_the_saved_state_are_removed(tmp_path):
    train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", stop_after=10)
    log = tmp_path / "s" / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"step": 11, "loss": 1}\n{"st')
    train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", stop_after=20)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [10, 20]


def test_a_state_of_the_first_version_is_resumed(tmp_path):
    """It has no time, which follows from its metrics."""
    train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", stop_after=10)
    state = tmp_path / "s" / "state.pt"
    old = {k: v for k, v in torch.load(state).items() if k in ("step", "model", "average", "optimizer")}
    torch.save(old, state)
    (tmp_path / "s" / "metrics.jsonl").write_text('{"step": 10, "loss": 1, "images_per_second": 2}\n')
    told = []
    model = train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", exported=told.append)
    whole = train(LineTask(), LINE, tmp_path / "s2", tmp_path / "w2")
    assert torch.equal(model.weight, whole.weight)
    assert 40 < told[-1].seconds < 60, "10 steps of 8 images at 2 a second, and what came after"


def test_a_state_of_another_model_is_refused(tmp_path):
    train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", stop_after=2)
    other = LineTask()
    other.model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="another recipe"):
        train(other, LINE, tmp_path / "s", tmp_path / "w")


@pytest.mark.parametrize("damage", ["empty", "half", "changed"])
def test_a_damaged_state_is_begun_anew(tmp_path, damage):
    whole = train(LineTask(), LINE, tmp_path / "s", tmp_path / "w", stop_after=4)
    again = train(LineTask(), LINE, tmp_path / "t", tmp_path / "v", stop_after=2)
    state, said = tmp_path / "t" / "state.pt", []
    blob = bytearray(state.read_bytes())
    at = blob.find(again.weight.detach().numpy().tobytes())
    assert at > 0
    blob[at] ^= 1
    state.write_bytes({"empty": b"", "half": blob[: len(blob) // 2], "changed": blob}[damage])
    assert read_state(state, said.append) is None and "starts over" in said[0]
    anew = train(LineTask(), LINE, tmp_path / "t", tmp_path / "v", stop_after=4)
    assert torch.equal(anew.weight, whole.weight)
    assert read_state(state)["step"] == 4


class StillTask(LineTask):
    """Without noise: the gradient is of the batch alone, however it is shared."""

    def loss(self, model, batch, generator):
        loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
        return loss, {"loss": loss.item()}


def _one_of_two(rank: int, port: int, folder: Path) -> None:
    for key, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2),
                       ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):  # fmt: skip
        os.environ[key] = str(value)
    schedule = replace(LINE, steps=6, accumulate=2)
    train(StillTask(), schedule, folder / "s", folder / f"w{rank}", stop_after=3)
    model = train(StillTask(), schedule, folder / "s", folder / f"w{rank}")
    torch.save(model.state_dict(), folder / f"rank{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_train_as_one(tmp_path):
    """Each sees its half of every batch, gradients are shared, and only the first one writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_one_of_two, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    alone = train(StillTask(), replace(LINE, steps=6, accumulate=2), tmp_path / "s1", tmp_path / "w1alone")
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert torch.equal(one["weight"], two["weight"])
    assert torch.allclose(one["weight"], alone.weight, atol=1e-5)
    assert (tmp_path / "w0").is_dir() and not (tmp_path / "w1").exists()
    steps = [json.loads(row)["step"] for row in (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6], "one process writes the metrics"


def test_what_a_machine_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="device"):
        make_accelerator(LINE, "cuda:1")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="fp16 needs"):
            make_accelerator(replace(LINE, precision="fp16"))
        with pytest.raises(ResourceError):
            make_accelerator(LINE, "cuda")
    with pytest.raises(ConfigError, match="precision"):
        make_accelerator(replace(LINE, precision="fp8"))


def test_half_precision_learns_too(tmp_path):
    schedule = replace(LINE, precision="bf16")
    model = train(LineTask(), schedule, tmp_path / "s", tmp_path / "w")
    assert model.weight.dtype == torch.float32 and model.weight.item() == pytest.approx(2, abs=0.1)


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    def rates(start):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = lr_scheduler(optimizer, LINE, start)
        for _ in range(start, LINE.steps):
            yield optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()

    whole = list(rates(0))
    assert whole[:5] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert whole[-1] == pytest.approx(0.005) and sorted(whole[5:], reverse=True) == whole[5:]
    assert list(rates(43)) == whole[43:], "a resumed training has the same rates"


def test_scenes_are_a_function_of_seed_and_index():
    a, b = Scenes(1)[5], Scenes(1)[5]
    assert torch.equal(a["image"], b["image"]) and a["caption"] == b["caption"]
    assert not torch.equal(a["image"], Scenes(2)[5]["image"])
    wrong = Scenes(1, wrong=True)
    assert all(wrong[i]["caption"] != wrong[i]["wrong"] for i in range(40))


@pytest.mark.parametrize("part", [name for name in tasks.names() if tasks.get(name).recipe_text()])
def test_a_few_steps_of_every_recipe_lower_its_loss(part, tmp_path):
    chosen = recipe.resolve(part)
    weights = tmp_path / "weights"
    weights.mkdir()
    for folder in ("vae", "clip", "unet"):
        (weights / folder).symlink_to(BUILTIN_FOLDER / folder) if part != "clip" else None
    torch.manual_seed(0)
    task = Training(chosen, tmp_path / "state", weights).build_task()
    # A tiny set, seen again and again, with the same noise.
    batch = next(iter(DataLoader(task.dataset(0), batch_size=3, sampler=range(3))))
    rate = 1e-5 if tasks.get(part).continues else 1e-3  # what is trained already is spoilt by large steps
    optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(4):
        loss, _ = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        loss.backward()
        idle = [k for k, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
        assert not idle, "several processes would wait for the gradients of these"
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    task.export(task.model, weights / "out")
    assert list((weights / "out").glob("*.safetensors"))


@pytest.mark.parametrize("part", [name for name in tasks.names() if not tasks.get(name).continues])
def test_a_warm_start_begins_with_the_weights_there_are(part, tmp_path):
    if not (BUILTIN_FOLDER / tasks.get(part).folder).is_dir():
        pytest.skip(f"the package carries no weights of the {part} yet")
    chosen = recipe.resolve(part)
    weights = tmp_path / "weights"
    weights.mkdir()
    for folder in ("vae", "clip", "unet"):
        if part != "clip":
            (weights / folder).symlink_to(BUILTIN_FOLDER / folder)
    torch.manual_seed(1)
    task = Training(chosen, tmp_path / "state", weights).build_task()
    model = task.model
    before = torch.cat([p.flatten() for p in model.parameters()])
    task.load_weights(BUILTIN_FOLDER / tasks.get(part).folder)
    after = torch.cat([p.flatten() for p in model.parameters()])
    assert (before != after).float().mean() > 0.9
    # The shipped weights are half precision, but not the mean embeddings of words that are new to them.
    assert (after == after.half().float()).float().mean() > 0.95
    with pytest.raises(ConfigError, match="does not fit"):
        tasks.load_weights(torch.nn.Linear(2, 2), BUILTIN_FOLDER / tasks.get(part).folder)


def test_bad_recipes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
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
