"""Answers of a hub, a mirror or a proxy that are not what was asked for."""

from pathlib import Path

import pytest
from asking import call
from listings import SD14
from test_hub import pulled, refused, sent

from ctxedit.models import transfer

BIG = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_named_and_what_came_is_kept(hub, sd14_files, status):
    hub.add(SD14, sd14_files)
    hub.answers[BIG] = (status, "Busy")
    refused(call("models", "pull", "sd14"), 4, f"answers {status}", "what was fetched is kept")
    before = set(sent(hub))
    hub.answers.clear()
    hub.sent.clear()
    pulled()
    assert BIG in sent(hub) and not set(sent(hub)) & {n for n in before if n.endswith(".safetensors")}


def test_a_listing_that_fails(hub, sd14_files):
    hub.add(SD14, sd14_files)
    hub.answers[SD14] = (500, "Broken")
    refused(call("models", "pull", "sd14"), 4, "answers 500", "later")


def test_a_private_repository(hub, sd14_files):
    hub.add(SD14, sd14_files)
    hub.answers[SD14] = (403, "Forbidden")
    refused(call("models", "pull", "sd14"), 4, "no access", "hf auth login")


def test_a_proxy_that_knows_no_ranges_starts_again(hub, sd14_files):
    hub.add(SD14, sd14_files)
    hub.ranges, hub.break_after[BIG] = False, [1000]
    folder = Path(pulled()["folder"])
    assert (folder / BIG).read_bytes() == sd14_files[BIG]
    assert sent(hub)[BIG] == len(sd14_files[BIG]) + 1000


def test_a_file_that_does_not_end_is_given_up(hub, sd14_files, monkeypatch):
    """More than was listed is not written to the disk."""
    hub.add(SD14, sd14_files).longer[BIG] = 64 << 20
    most, replace = [0], transfer._matches

    def watch(path, file):
        most.append(path.stat().st_size)
        return replace(path, file)

    monkeypatch.setattr(transfer, "_matches", watch)
    refused(call("models", "pull", "sd14"), 4, BIG, "hash")
    assert max(most) < len(sd14_files[BIG]) + (16 << 20)
    assert not list(Path(transfer.__file__).parent.glob("*.incomplete"))


@pytest.mark.parametrize(
    "name", ["../../../evil.safetensors", "/tmp/evil.safetensors", "unet/../../evil.json"]
)
def test_names_that_lead_out_of_the_cache_are_refused(hub, sd14_files, tmp_path, name):
    hub.add(SD14, sd14_files | {name: b"evil"})
    refused(call("models", "pull", "sd14"), 4, "lead out of its folder")
    hub.add("nobody/lora", {name: b"evil"})
    answer = call(
        "t2i", "a cat", "--lora", "nobody/lora", "--set", "upscale.scale=1", "-o", tmp_path / "x.png", "-y"
    )
    refused(answer, 4)
    assert not list(tmp_path.rglob("evil*"))


def test_a_branch_file_that_is_no_text(hub, sd14_files, tmp_path):
    hub.add(SD14, sd14_files)
    pulled()
    (tmp_path / "cache" / "models--CompVis--stable-diffusion-v1-4" / "refs" / "main").write_bytes(b"\xff\xfe")
    hub.sent.clear()
    pulled()
    assert not sent(hub), "what is there by its hash is not fetched again"


def test_a_cache_that_is_a_file(hub, sd14_files, tmp_path):
    hub.add(SD14, sd14_files)
    (tmp_path / "cache").write_text("no folder")
    refused(call("models", "pull", "sd14"), 6, "cache", "HF_HOME")
