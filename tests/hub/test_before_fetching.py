"""What cannot work is refused, or listed as failed, before gigabytes are fetched for it."""

import json
from fractions import Fraction

import numpy as np
import pytest
from asking import call
from hub_server import files_of
from listings import SD14

LONG = " ".join(["a very long sentence about a tiger"] * 60)
SMALL = ("--model", "sd14", "--dtype", "float32", "--device", "cpu")
NO_SUCH_LAYERS = ("--set", "fusion.blend=latent", "--set", "fusion.mask_resolution=0.001")


@pytest.fixture(autouse=True)
def served(hub, sd14_files, clip_files):
    from ctxedit.metrics.evaluate import CLIP

    hub.add(SD14, sd14_files)
    hub.add(CLIP, clip_files)
    return hub


def fetched(hub):
    return [name for name in hub.sent if name.endswith(".safetensors")]


def refused(hub, answer, code, *texts):
    lines = [line for line in answer.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert answer.code == code and len(lines) == 2, answer.err
    for text in texts:
        assert text in lines[0] + lines[1]
    assert not fetched(hub)


class TestOneClip:
    @pytest.mark.parametrize(
        ("arguments", "code", "text"),
        [
            (("a cat", "--prompt", LONG), 3, "tokens"),
            ((LONG, "--prompt", "a dog"), 3, "tokens"),
            (("a cat", "--prompt", "a dog", "--negative-prompt", LONG), 3, "tokens"),
            (("a cat", "--prompt", "a dog", *NO_SUCH_LAYERS), 2, "mask_resolution"),
            (("a cat", "--prompt", "a dog", "--set", "fusion.word_weights.bird=2"), 2, "bird"),
            (("make it a cat", "--prompt", "a dog"), 3, "says what to do"),
        ],
    )
    def test_a_run_is_refused(self, hub, clip, tmp_path, arguments, code, text):
        refused(hub, call("run", clip, *arguments, "--runs", tmp_path / "runs", *SMALL), code, text)

    def test_a_mask_of_another_shape(self, hub, clip, tmp_path):
        from ctxedit.media.write import write_image

        mask = write_image(tmp_path / "mask.png", np.full((32, 64, 3), 255, np.uint8))
        options = ("--prompt", "a dog", "--mask", mask, "--runs", tmp_path / "runs")
        refused(hub, call("run", clip, "a cat", *options, *SMALL), 3, "mask")

    def test_tune_and_t2i(self, hub, clip, tmp_path):
        tune = ("tune", clip, "--prompt", LONG, "--runs", tmp_path / "runs")
        refused(hub, call(*tune, *SMALL), 3, "tokens")
        curve = ("tune", clip, "--prompt", "a dog", "--curve", 2, "--target", LONG, "--runs", tmp_path)
        refused(hub, call(*curve, *SMALL), 3, "tokens")
        image = ("t2i", LONG, "-o", tmp_path / "x.png")
        refused(hub, call(*image, *SMALL), 3, "tokens")
        assert call(*image, *SMALL, "--set", "edit.long_prompts=true", "--dry-run").code == 0

    @pytest.mark.parametrize("data", [b"no safetensors", b""])
    def test_an_unreadable_lora(self, hub, tmp_path, data):
        (tmp_path / "style.safetensors").write_bytes(data)
        image = ("t2i", "a cat", "--lora", tmp_path / "style.safetensors", "-o", tmp_path / "x.png")
        refused(hub, call(*image, *SMALL), 4, "style.safetensors")

    def test_a_lora_of_the_hub_for_another_kind_of_model(self, hub, tmp_path):
        """It is small and fetched first."""
        import torch
        from safetensors.torch import save

        layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
        wide = {f"{layer}.lora_A.weight": torch.ones(1, 2048), f"{layer}.lora_B.weight": torch.ones(16, 1)}
        hub.add("artist/style", {"pytorch_lora_weights.safetensors": save(wide)})
        answer = call("t2i", "a cat", "--lora", "artist/style", "-o", tmp_path / "x.png", *SMALL)
        assert answer.code == 4 and "Stable Diffusion XL" in answer.err, answer.err
        assert fetched(hub) == ["artist/style/pytorch_lora_weights.safetensors"]

    def test_a_controlnet_for_another_kind_of_model(self, hub, clip, controlnet, tmp_path):
        files = files_of(controlnet)
        config = json.loads(files["config.json"]) | {"cross_attention_dim": 1024}
        hub.add("artist/canny", files | {"config.json": json.dumps(config).encode()})
        control = ("--set", "control.kind=canny", "--set", "control.model=artist/canny")
        options = ("--prompt", "a dog", "--runs", tmp_path / "runs")
        refused(hub, call("run", clip, "a cat", *options, *control, *SMALL), 2, "does not fit")


class TestLists:
    @pytest.fixture()
    def listed(self, clip, tmp_path):
        """Writes a list of clips, each with its targets."""
        from ctxedit.media.write import write_clip, write_image

        write_image(tmp_path / "wide.png", np.full((32, 64, 3), 255, np.uint8))
        write_clip(tmp_path / "small.mp4", np.zeros((24, 16, 16, 3), np.uint8), Fraction(8))
        (tmp_path / "broken.mp4").write_bytes(b"no video")

        def write(**clips):
            lines = []
            for name, (path, prompt, *targets) in clips.items():
                lines.append(f'[[clips]]\nname = "{name}"\npath = "{path or clip}"\nprompt = "{prompt}"')
                for target in targets:
                    more = target if isinstance(target, dict) else {"prompt": target}
                    table = "\n".join(f'{key} = "{value}"' for key, value in more.items())
                    lines.append(f"[[clips.targets]]\n{table}")
            (tmp_path / "list.toml").write_text("\n".join(lines))
            return tmp_path / "list.toml"

        return write

    @pytest.fixture(params=["batch", "bench"])
    def ask(self, request, tmp_path):
        more = ("--presets", "ddim") if request.param == "bench" else ("--preset", "ddim")

        def ask(path, *options):
            return call(request.param, path, *more, "-o", tmp_path / "out", *SMALL, *options)

        return ask

    @pytest.mark.parametrize(
        ("entry", "text"),
        [
            ((None, "a dog", LONG), "tokens"),
            ((None, LONG, "a cat"), "tokens"),
            ((None, "a dog", "make it a cat"), "says what to do"),
            (("broken.mp4", "a dog", "a cat"), "broken.mp4"),
            ((None, "a dog", {"prompt": "a cat", "mask": "wide.png"}), "mask"),
            ((None, "a dog", {"prompt": "a cat", "ideal": "small.mp4"}), "another size"),
        ],
    )
    def test_a_bad_entry_is_listed_before_anything_is_fetched(self, hub, ask, listed, entry, text):
        refused(hub, ask(listed(bad=entry)), 3, "bad", text)
        answer = ask(listed(good=(None, "a dog", "a bird"), bad=entry), "--dry-run")
        assert answer.code == 0 and not fetched(hub), answer.err
        (warned,) = [line for line in answer.err.splitlines() if line.startswith("warning: ")]
        assert "bad" in warned and text in warned

    def test_one_target_of_several(self, hub, ask, listed):
        answer = ask(listed(two=(None, "a dog", "a bird", LONG)), "--dry-run")
        assert answer.code == 0 and "two, “a very long" in answer.err and "tokens" in answer.err

    def test_settings_that_the_model_does_not_support_end_it(self, hub, ask, listed, tmp_path):
        path = listed(good=(None, "a dog", "a bird"))
        refused(hub, ask(path, *NO_SUCH_LAYERS), 2, "mask_resolution")
        assert not (tmp_path / "out").exists()

    def test_a_clip_that_is_not_there(self, hub, ask, listed):
        refused(hub, ask(listed(gone=("gone.mp4", "a dog", "a bird"))), 3, "gone.mp4 does not exist")
        assert not hub.requests


def test_the_default_list_of_bench_is_checked_with_one_clip(hub, tmp_path):
    answer = call("bench", "--presets", "ddim", "-o", tmp_path / "out", *SMALL, *NO_SUCH_LAYERS)
    refused(hub, answer, 2, "mask_resolution")
    assert not (tmp_path / "out").exists()
