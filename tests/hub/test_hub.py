"""Fetching from a served hub through the command line: what is fetched, continued, checked, refused."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from asking import call
from hub_server import files_of
from listings import CLIP, LARGE, SD14, needed

from ctxedit.models import hub as ours
from ctxedit.models import transfer
from ctxedit.models.hub import SAFE_REVISIONS


def pulled(name="sd14", *more):
    answer = call("models", "pull", name, "--json", *more)
    assert answer.code == 0, answer.err
    return answer.table


def refused(answer, code, *texts):
    lines = answer.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert answer.code == code and len(errors) == len(hints) == 1, answer.err
    for text in texts:
        assert text in errors[0] + hints[0]


def sent(hub, hub_id=SD14):
    return {k.removeprefix(f"{hub_id}/"): v for k, v in hub.sent.items() if k.startswith(f"{hub_id}/")}


class TestWhatIsFetched:
    @pytest.mark.parametrize("half", [False, True])
    def test_each_needed_file_once_and_nothing_else(self, hub, sd14_files, half):
        hub.add(SD14, sd14_files)
        table = pulled("sd14", *(["--half"] if half else []))
        assert sent(hub) == {name: len(sd14_files[name]) for name in needed(sd14_files, half)}
        folder = Path(table["folder"])
        assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} == needed(
            sd14_files, half
        )
        assert all((folder / name).read_bytes() == sd14_files[name] for name in needed(sd14_files, half))
        assert table["total"] == sum(sent(hub).values())

    @pytest.mark.parametrize("half", [False, True])
    @pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
    def test_of_the_other_named_repositories_as_well(self, hub, sd14_files, name, half):
        listed = LARGE[name].split()
        small = {n: d for n, d in sd14_files.items() if n.endswith((".json", ".txt"))}
        if name == "sdxl":
            small |= {n.replace("/", "_2/", 1): d for n, d in small.items() if n.startswith(("text_", "tok"))}
            small["model_index.json"] = b'{"_class_name": "StableDiffusionXLPipeline"}'
            told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
            told["projection_class_embeddings_input_dim"] = 6 * 8 + 32
            for part, more in (("unet", told), ("text_encoder_2", {"projection_dim": 32})):
                config = json.loads(small[f"{part}/config.json"]) | more
                small[f"{part}/config.json"] = json.dumps(config).encode()
        hub_id = ours.full_id(name)
        hub.add(hub_id, small | {n.lstrip("+="): n.encode() for n in listed})
        pulled(name, *(["--half"] if half else []))
        wanted = {n[1:] for n in listed if n[0] == ("=" if half else "+")}
        assert {n for n in sent(hub, hub_id) if n not in small} == wanted
        assert len(wanted) == (4 if name == "sdxl" else 3)

    def test_a_second_pull_transfers_nothing(self, hub, sd14_files):
        hub.add(SD14, sd14_files)
        pulled()
        hub.sent.clear()
        assert pulled()["bytes"] == 0 and not hub.sent

    def test_half_precision_takes_the_full_files_where_there_are_no_others(self, hub, sd14_files):
        files = {n: d for n, d in sd14_files.items() if ".fp16." not in n}
        hub.add(SD14, files)
        pulled("sd14", "--half")
        assert set(sent(hub)) == needed(files)

    def test_a_revision_with_safetensors_is_taken_of_clip(self, hub, clip_files, monkeypatch):
        repository = hub.add(CLIP, clip_files)
        monkeypatch.setitem(SAFE_REVISIONS, CLIP, repository.commit)
        pulled("clip")
        assert set(sent(hub, CLIP)) == {n for n in clip_files if not n.endswith((".bin", ".msgpack", ".h5"))}
        assert any(repository.commit in path for _, path in hub.requests)

    def test_of_the_controlnet_its_weights_without_pickles_and_pictures(self, hub, controlnet):
        files = files_of(controlnet)
        others = ("README.md", "diffusion_pytorch_model.bin", "images/bird.png", "images/bird_canny.png")
        hub_id = ours.full_id("canny")
        hub.add(hub_id, files | dict.fromkeys(others, b"not needed"))
        table = pulled("canny", "--half")
        wanted = ("config.json", "diffusion_pytorch_model.safetensors")
        assert sent(hub, hub_id) == {name: len(files[name]) for name in wanted}
        assert table["total"] == sum(sent(hub, hub_id).values())

    def test_shards_are_fetched_and_their_index(self, hub, clip_files):
        shards = {f"model-0000{i}-of-00002.safetensors": b"x" * i for i in (1, 2)}
        index = {"model.safetensors.index.json": b"{}", "pytorch_model.bin.index.json": b"{}"}
        files = {k: v for k, v in clip_files.items() if k != "model.safetensors"} | shards | index
        hub.add("Salesforce/blip2-opt-2.7b", files)
        pulled("blip2")
        got = set(sent(hub, "Salesforce/blip2-opt-2.7b"))
        assert got >= {*shards, "model.safetensors.index.json"} and "pytorch_model.bin.index.json" not in got

    def test_a_repository_of_pickles_is_refused_before_anything_is_fetched(self, hub, sd14_files):
        hub.add(SD14, {n: d for n, d in sd14_files.items() if not n.endswith(".safetensors")})
        refused(call("models", "pull", "sd14"), 4, "pickled")
        assert set(sent(hub)) == {"model_index.json"}

    def test_an_unknown_family_is_refused_by_its_index(self, hub, sd14_files):
        hub.add(SD14, sd14_files | {"model_index.json": b'{"_class_name": "FluxPipeline"}'})
        refused(call("models", "pull", "sd14"), 4, "FluxPipeline")
        assert set(sent(hub)) == {"model_index.json"}

    def test_inpainting_is_refused_by_its_config(self, hub, sd14_files):
        config = json.loads(sd14_files["unet/config.json"]) | {"in_channels": 9}
        hub.add(SD14, sd14_files | {"unet/config.json": json.dumps(config).encode()})
        refused(call("models", "pull", "sd14"), 4, "9 channels", "inpainting")
        assert not any(name.endswith(".safetensors") for name in sent(hub))


class TestWhatGoesWrong:
    BIG = "unet/diffusion_pytorch_model.safetensors"

    def test_a_broken_connection_is_continued_at_once(self, hub, sd14_files):
        hub.add(SD14, sd14_files)
        hub.break_after[self.BIG] = [1000, 1000]
        pulled()
        assert sent(hub)[self.BIG] == len(sd14_files[self.BIG]), "no byte was asked for twice"

    def test_one_that_stays_broken_is_continued_by_the_same_command(self, hub, sd14_files):
        hub.add(SD14, sd14_files)
        hub.break_after[self.BIG] = [1000] + [0] * 20
        refused(call("models", "pull", "sd14"), 4, "connection broke", "continues")
        assert len(hub.break_after[self.BIG]) > 10, "it was given up"
        hub.break_after.clear()
        before = sent(hub)[self.BIG]
        table = pulled()
        assert before == 1000 and sent(hub)[self.BIG] == len(sd14_files[self.BIG])
        assert (Path(table["folder"]) / self.BIG).read_bytes() == sd14_files[self.BIG]

    def test_a_wrong_hash_is_refused_and_not_kept(self, hub, sd14_files):
        repository = hub.add(SD14, sd14_files)
        repository.spoiled.add(self.BIG)
        refused(call("models", "pull", "sd14"), 4, self.BIG, "hash")
        repository.spoiled.clear()
        assert (Path(pulled()["folder"]) / self.BIG).read_bytes() == sd14_files[self.BIG]

    @pytest.mark.parametrize("name", [BIG, "unet/config.json"])
    def test_what_was_damaged_in_the_cache_is_fetched_again(self, hub, sd14_files, name):
        hub.add(SD14, sd14_files)
        file = Path(pulled()["folder"]) / name
        file.resolve().write_bytes(bytes(len(sd14_files[name])))
        hub.sent.clear()
        pulled()
        assert file.read_bytes() == sd14_files[name] and set(sent(hub)) == {name}

    def test_gated(self, hub, sd14_files):
        hub.add(SD14, sd14_files, gated=True)
        refused(call("models", "pull", "sd14"), 4, "gated", "hf auth login")

    def test_gone(self, hub):
        refused(call("models", "pull", "nobody/nothing"), 4, "nobody/nothing", "check the id")

    def test_no_server(self, hub, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        refused(call("models", "pull", "sd14"), 4, "could not be fetched", "connection")

    def test_offline(self, hub, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused(call("models", "pull", "sd14"), 4, "not in the cache", "4.27 GB")
        assert not hub.requests

    def test_a_full_disk_before_the_first_byte(self, hub, sd14_files, monkeypatch):
        import shutil

        hub.add(SD14, sd14_files)
        real = shutil.disk_usage
        monkeypatch.setattr(ours.shutil, "disk_usage", lambda path: real(path)._replace(free=20_000))
        refused(call("models", "pull", "sd14"), 6, "are free", "HF_HOME")
        assert not any(name.endswith(".safetensors") for name in sent(hub))

    def test_a_disk_that_fills_up(self, hub, sd14_files, monkeypatch):
        hub.add(SD14, sd14_files)
        real = transfer._request

        def full(download, file, *more):
            if file.name == self.BIG:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(download, file, *more)

        monkeypatch.setattr(transfer, "_request", full)
        refused(call("models", "pull", "sd14"), 6, "disk is full", "continues")

    @pytest.mark.parametrize("command", [("models", "pull", "sd14"), ("t2i", "a cat", "--model", "sd14")])
    def test_ctrl_c_keeps_what_came(self, hub, sd14_files, monkeypatch, command, tmp_path):
        hub.add(SD14, sd14_files)
        monkeypatch.chdir(tmp_path)
        real = transfer.Watcher.came
        came = []

        def interrupted(self, count):
            came.append(count)
            if sum(came) > 600_000:
                raise KeyboardInterrupt
            return real(self, count)

        from ctxedit.cli import fetching

        monkeypatch.setattr(fetching.Bar, "came", interrupted)
        answer = call(*command, *(["--dtype", "float32"] if command[0] == "t2i" else []))
        assert answer.code == 130 and "resume" in answer.err, answer.err
        monkeypatch.setattr(fetching.Bar, "came", real)
        pulled()
        assert all(count == len(sd14_files[name]) for name, count in sent(hub).items() if name != self.BIG)

    def test_two_processes_at_once_fetch_each_file_once(self, hub, server, sd14_files, tmp_path, monkeypatch):
        from ctxedit.cli.fetching import Bar

        hub.add(SD14, sd14_files)
        hub.gate = threading.Event()
        environment = {
            **os.environ, "HF_ENDPOINT": server[1], "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
        }  # fmt: skip
        waits = Bar.waits

        def wait(bar, name):
            waits(bar, name)
            hub.gate.set()

        monkeypatch.setattr(Bar, "waits", wait)
        command = [sys.executable, "-m", "ctxedit", "models", "pull", "sd14", "--json"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
            assert hub.asked_for.wait(30), "the first process asks for a weights file"
            second = call("models", "pull", "sd14", "--json")
            hub.gate.set()
            out, _ = first.communicate(timeout=30)
        assert (first.returncode, second.code) == (0, 0), second.err
        assert "is being fetched by another process; waiting for it" in second.err
        assert json.loads(out)["folder"] == second.table["folder"]
        weights = {n: len(sd14_files[n]) for n in needed(sd14_files) if n.endswith(".safetensors")}
        assert {n: c for n, c in sent(hub).items() if n in weights} == weights

    def test_a_hub_that_lists_no_sizes_is_refused(self, hub, sd14_files, monkeypatch):
        repository = hub.add(SD14, sd14_files)
        monkeypatch.setattr(repository, "siblings", lambda: [{"rfilename": name} for name in sd14_files])
        refused(call("models", "pull", "sd14"), 4, "without sizes", "HF_ENDPOINT")


class TestConsent:
    @pytest.fixture()
    def dear(self, monkeypatch):
        """Every byte counts as many: what is asked for a gigabyte is asked here."""
        from ctxedit.cli import fetching

        monkeypatch.setattr(fetching, "CONFIRM_ABOVE", 1000)

    def test_off_a_terminal_y_is_needed(self, hub, sd14_files, dear):
        hub.add(SD14, sd14_files)
        refused(call("models", "pull", "sd14"), 2, SD14, "-y")
        assert not any(name.endswith(".safetensors") for name in sent(hub))
        pulled("sd14", "-y")

    def test_what_and_how_much_and_where_to_is_said_first(self, hub, sd14_files, tmp_path):
        hub.add(SD14, sd14_files)
        told = call("models", "pull", "sd14").err
        assert SD14 in told and str(tmp_path / "cache") in told and " MB" in told

    @pytest.mark.parametrize("yes", [True, False])
    def test_on_a_terminal_one_is_asked(self, hub, sd14_files, dear, monkeypatch, yes):
        import typer
        from rich.console import Console

        from ctxedit.cli import fetching

        hub.add(SD14, sd14_files)
        asked = []

        def confirm(text, **options):
            asked.append(text)
            if not yes:
                raise typer.Abort

        monkeypatch.setattr(Console, "is_terminal", True)
        monkeypatch.setattr(fetching.typer, "confirm", confirm)
        monkeypatch.setattr("sys.stdin", type("Tty", (), {"isatty": lambda self: True})())
        assert (call("models", "pull", "sd14", "-q").code == 0) is yes
        assert len(asked) == 1 and "MB" in asked[0]
        assert any(name.endswith(".safetensors") for name in sent(hub)) is yes
