"""``--dtype fast``: bfloat16 where the processor multiplies in it, and a run's identity that says which."""

from pathlib import Path

import pytest
import torch
from asking import call

from ctxedit import config as configuration
from ctxedit.editing.keys import Keys
from ctxedit.editing.request import Request
from ctxedit.models import device as devices

CPU = torch.device("cpu")


@pytest.fixture()
def processor(monkeypatch):
    """Makes this machine's processor one with, or one without, bfloat16 products."""
    return lambda able: monkeypatch.setattr(devices, "multiplies_bfloat16", lambda: able)


@pytest.mark.parametrize("able, expected", [(True, torch.bfloat16), (False, torch.float32)])
def test_fast_is_what_the_processor_does_best(processor, able, expected):
    processor(able)
    assert devices.pick_dtype("fast", CPU) == expected
    assert devices.pick_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize(
    "flags, able",
    [
        ("fpu avx512f avx512_bf16 sse", True),
        ("fpu amx_bf16", True),
        ("fpu avx512f avx512bw", False),
        ("not_avx512_bf16", False),
    ],
)
def test_the_processor_is_asked_by_its_flags(monkeypatch, flags, able):
    text = f"processor : 0\nmodel name : avx512_bf16\nflags\t\t: {flags}\n\nprocessor : 1\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **how: text)
    devices.multiplies_bfloat16.cache_clear()
    try:
        assert devices.multiplies_bfloat16() is able
    finally:
        devices.multiplies_bfloat16.cache_clear()


def test_no_such_file_is_no_such_instruction(monkeypatch):
    def missing(self, **how):
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", missing)
    devices.multiplies_bfloat16.cache_clear()
    try:
        assert devices.multiplies_bfloat16() is False
    finally:
        devices.multiplies_bfloat16.cache_clear()


def test_a_run_is_known_by_what_fast_means_here(processor, clip):
    def identity(dtype):
        settings = configuration.load("contextdiff", flags={"dtype": dtype}, environ={})
        return Keys(Request(Path(clip), settings)).identity("a tiger")

    processor(True)
    able = identity("fast")
    assert able == identity("bfloat16") != identity("float32")
    processor(False)
    assert identity("fast") == identity("float32") != able


@pytest.mark.parametrize("able, said", [(True, "bfloat16"), (False, "float32")])
def test_the_plan_says_which(processor, clip, tmp_path, able, said):
    processor(able)
    answer = call(
        "run", clip, "a panda", "--prompt", "a tiger", "--dtype", "fast", "--dry-run", "--json",
        "--frames", 2, "--runs", tmp_path,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.table["plan"]["dtype"] == said
