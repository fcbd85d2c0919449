"""Which precision ``--dtype auto`` is: half where that is faster, and a run's identity that says which."""

from pathlib import Path

import pytest
import torch
from asking import call

from ctxedit import config as configuration
from ctxedit.editing.keys import Keys
from ctxedit.editing.request import Request
from ctxedit.errors import ConfigError
from ctxedit.models import device as devices
from ctxedit.models.device import processor_flags

CPU = torch.device("cpu")
ABLE, NOT = frozenset({"fpu", "avx512_bf16"}), frozenset({"fpu", "avx512f"})


@pytest.fixture()
def processor(monkeypatch):
    """Gives this machine's processor other flags."""
    return lambda flags: monkeypatch.setattr(devices, "processor_flags", lambda: flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(ABLE, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16), (NOT, torch.float32), ((), torch.float32)],
)
def test_auto_is_what_the_processor_does_best(processor, flags, expected):
    processor(frozenset(flags))
    assert devices.pick_dtype("auto", CPU) is expected
    assert devices.pick_dtype("half", CPU) is torch.bfloat16
    assert devices.pick_dtype("float32", CPU) is torch.float32


def test_float16_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="float16"):
        devices.pick_dtype("float16", CPU)


def test_a_cpu_keeps_everything_but_the_denoiser_in_float32():
    assert devices.storage_dtype(torch.bfloat16, CPU) is torch.float32
    assert devices.storage_dtype(torch.bfloat16, torch.device("cuda")) is torch.bfloat16


def test_the_processor_is_asked_by_its_flags(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name : amx_bf16\nflags\t\t: fpu avx512_bf16\n\nprocessor : 1\n")
    assert processor_flags(file) == ABLE
    assert processor_flags(tmp_path / "missing") == frozenset()


def test_a_run_is_known_by_what_auto_means_here(processor, clip):
    def identity(dtype):
        settings = configuration.load("contextdiff", flags={"dtype": dtype, "device": "cpu"}, environ={})
        return Keys(Request(Path(clip), settings)).identity("a tiger")

    processor(ABLE)
    able = identity("auto")
    assert able == identity("bfloat16") != identity("float32")
    processor(NOT)
    assert identity("auto") != able


@pytest.mark.parametrize(("flags", "said"), [(ABLE, "bfloat16"), (NOT, "float32")])
def test_the_plan_says_which(processor, clip, tmp_path, flags, said):
    processor(flags)
    answer = call(
        "run", clip, "a panda", "--prompt", "a tiger", "--dtype", "auto", "--dry-run", "--json",
        "--frames", 2, "--runs", tmp_path, "--device", "cpu",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.table["plan"]["dtype"] == said
