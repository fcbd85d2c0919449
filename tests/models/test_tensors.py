"""Tensors in a file: the same content is the same bytes, and safetensors reads it."""

import torch
from safetensors import safe_open

from ctxedit.models.tensors import save_tensors


def test_the_same_content_is_the_same_bytes(tmp_path):
    tensors = {name: torch.arange(n).to(torch.float16) for n, name in enumerate("zyxé", start=1)}
    notes = {f"note {n}": f"“{n}”" for n in range(9)}
    for n in range(5):
        save_tensors(tmp_path / f"{n}.safetensors", tensors, notes)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_safetensors_reads_what_was_saved(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.tensor([1, 2], dtype=torch.uint8), "c": torch.tensor(7.0)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"who": "me"})
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert file.metadata() == {"who": "me"}
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_without_metadata(tmp_path):
    save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)})
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("a"), torch.ones(2))


def test_tensors_written_in_parts_are_the_same_file(tmp_path):
    from ctxedit.models.tensors import mapped_tensor, tensors_in_parts

    frames = torch.arange(2 * 5 * 3, dtype=torch.uint8).reshape(2, 5, 3)
    mask = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    save_tensors(tmp_path / "whole", {"frames": frames, "mask": mask})
    shapes = {"frames": ((2, 5, 3), "uint8"), "mask": ((2, 5), "float32")}
    with tensors_in_parts(tmp_path / "parts", shapes) as arrays:
        for i in range(2):
            arrays["frames"][i], arrays["mask"][i] = frames[i].numpy(), mask[i].numpy()
        assert not (tmp_path / "parts").exists()
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert torch.equal(torch.from_numpy(mapped_tensor(tmp_path / "parts", "mask")), mask)
    assert mapped_tensor(tmp_path / "parts", "other") is None
