"""Answers of a hub, a mirror or a proxy that are not what was asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from asking import call
from listings import CLIP, SD14
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


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub, sd14_files, monkeypatch):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    hub.add(SD14, sd14_files)
    hub.busy[BIG] = [(429, "7"), (503, ""), (504, "Wed, 21 Oct 2026 07:28:00 GMT")]
    folder = Path(pulled()["folder"])
    assert (folder / BIG).read_bytes() == sd14_files[BIG] and not hub.busy[BIG]
    assert [one for one in slept if one] == [7.0], "it waits as long as the hub says"


def test_a_long_wait_is_the_users(hub, sd14_files):
    hub.add(SD14, sd14_files)
    hub.busy[BIG] = [(429, "1800")] * 9
    refused(call("models", "pull", "sd14"), 4, "answers 429", "in 1800 seconds", "kept")
    assert len(hub.busy[BIG]) == 8


def test_large_files_come_from_another_host_which_does_not_see_the_token(
    hub, server, sd14_files, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add(SD14, sd14_files)
    hub.cdn = server[1].replace("127.0.0.1", "localhost")
    folder = Path(pulled()["folder"])
    assert (folder / BIG).read_bytes() == sd14_files[BIG]
    tokens = {from_cdn: {token for c, token in hub.tokens if c is from_cdn} for from_cdn in (True, False)}
    assert tokens == {True: {None}, False: {"Bearer hf_secret"}}


def test_a_repository_that_was_renamed(hub, sd14_files):
    hub.add("new/name", sd14_files)
    hub.moved["old/name"] = "new/name"
    folder = Path(pulled("old/name")["folder"])
    assert (folder / BIG).read_bytes() == sd14_files[BIG]
    assert sent(hub, "new/name")[BIG] == len(sd14_files[BIG])


@pytest.mark.parametrize("etag", ['W/"5f3c-18a"', '"latest"'])
def test_a_mirror_whose_etags_are_no_hashes(hub, sd14_files, etag):
    """What is fetched is known by the listing's hash, and not fetched twice."""
    hub.add(SD14, sd14_files)
    hub.etags = dict.fromkeys(sd14_files, etag)
    folder = Path(pulled()["folder"])
    assert (folder / BIG).read_bytes() == sd14_files[BIG]
    assert sent(hub)[BIG] == len(sd14_files[BIG])


def test_a_cache_without_symbolic_links(hub, sd14_files, monkeypatch):
    """As on Windows, where not everyone may make them, and on some file systems."""

    def refuse(*args, **more):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    hub.add(SD14, sd14_files)
    folder = Path(pulled()["folder"])
    assert (folder / BIG).read_bytes() == sd14_files[BIG] and not (folder / BIG).is_symlink()
    hub.sent.clear()
    pulled()
    assert not sent(hub)


@pytest.mark.parametrize("path", ["/", "/mirror", "/mirror/"])
def test_an_endpoint_with_a_path_or_a_slash(hub, server, sd14_files, tmp_path, path):
    """As the environment names it, which only a new process reads."""
    hub.add(SD14, sd14_files)
    place = {"HF_ENDPOINT": server[1] + path, "HF_HUB_CACHE": str(tmp_path / "own"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "ctxedit", "models", "pull", "sd14", "--half", "--json"]
    ended = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert Path(json.loads(ended.stdout)["folder"]).is_relative_to(tmp_path / "own")


@pytest.mark.parametrize(
    ("endpoint", "texts"),
    [
        ("hf-mirror.example", ("protocol", "hf-mirror.example")),
        ("{server}/nowhere", ("there is no", "HF_ENDPOINT ({server}/nowhere)")),
    ],
)
def test_an_endpoint_that_is_no_hub(hub, server, sd14_files, monkeypatch, endpoint, texts):
    from huggingface_hub import constants

    hub.add(SD14, sd14_files)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint.format(server=server[1]))
    refused(call("models", "pull", "sd14"), 4, *(text.format(server=server[1]) for text in texts))


def test_a_proxy_is_named_without_its_password(hub, sd14_files, monkeypatch):
    from huggingface_hub import close_session

    hub.add(SD14, sd14_files)
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    close_session()
    try:
        answer = call("models", "pull", "sd14")
    finally:
        monkeypatch.undo()
        close_session()
    refused(answer, 4, "could not be fetched", "through the proxy http://127.0.0.1:9")
    assert "secret" not in answer.err


def test_an_empty_repository(hub, tmp_path):
    hub.add("nobody/empty", {})
    refused(call("models", "pull", "nobody/empty"), 4, "nobody/empty has no files")
    image = ("t2i", "a cat", "--model", "nobody/empty", "-o", tmp_path / "x.png")
    refused(call(*image), 4, "nobody/empty has no files")


def test_a_revision_is_not_taken(hub, sd14_files, tmp_path):
    hub.add(SD14, sd14_files)
    for command in (("models", "pull"), ("t2i", "a cat", "-o", tmp_path / "x.png", "--model")):
        answer = call(*command, f"{SD14}@fp16")
        refused(answer, 4, "names a revision", f"hf download {SD14} --revision fp16 --local-dir")
    assert not hub.requests


def test_a_mirror_without_the_commit_that_has_safetensors(hub, clip_files):
    hub.add(CLIP, clip_files)
    hub.answers[CLIP] = (404, "RevisionNotFound")
    refused(call("models", "pull", "clip"), 4, "lacks the commit c237dc49", "HF_ENDPOINT")


@pytest.mark.parametrize(
    ("token", "texts"), [("hf_expired", ("token", "HF_TOKEN")), ("hf_grüße", ("HF_TOKEN",))]
)
def test_a_token_that_is_refused(hub, sd14_files, monkeypatch, token, texts):
    monkeypatch.setenv("HF_TOKEN", token)
    hub.add(SD14, sd14_files)
    hub.answers[SD14] = (401, "")
    refused(call("models", "pull", "sd14"), 4, *texts)


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


def test_a_file_that_does_not_end_is_given_up(hub, sd14_files, monkeypatch, tmp_path):
    """More than was listed is not written to the disk."""
    hub.add(SD14, sd14_files).longer[BIG] = 64 << 20
    most, matches = [0], transfer._matches

    def watch(path, file):
        most.append(path.stat().st_size)
        return matches(path, file)

    monkeypatch.setattr(transfer, "_matches", watch)
    refused(call("models", "pull", "sd14"), 4, BIG, "hash")
    assert max(most) < len(sd14_files[BIG]) + (16 << 20)
    assert not list((tmp_path / "cache").rglob("*.incomplete")), "the next attempt starts afresh"


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
