"""Which precision a device is given."""

import pytest
import torch

from ctxedit.errors import ConfigError
from ctxedit.models.device import multiplies_bfloat16, pick_dtype, storage_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("instructions", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_a_cpu_is_given_bfloat16_where_it_multiplies_it(monkeypatch, instructions):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == instructions, raising=False)
    assert multiplies_bfloat16() is (instructions is not None)
    assert pick_dtype("auto", CPU) is (torch.bfloat16 if instructions else torch.float32)
    assert pick_dtype("half", CPU) is torch.bfloat16 and pick_dtype("float32", CPU) is torch.float32


def test_a_torch_that_does_not_tell_gets_float32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert pick_dtype("auto", CPU) is torch.float32


def test_float16_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="float16"):
        pick_dtype("float16", CPU)


def test_a_cpu_keeps_everything_but_the_denoiser_in_float32():
    assert storage_dtype(torch.bfloat16, CPU) is torch.float32
    assert storage_dtype(torch.bfloat16, torch.device("cuda")) is torch.bfloat16
