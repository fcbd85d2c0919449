"""Commands on a checkpoint from a served hub: first use, later use offline, the dry run, and the layouts."""

import json
import shutil

import imageio.v3
import pytest
from asking import call
from hub_server import files_of
from listings import SD14, halved, needed
from original_keys import make_pipeline, save_single, write_merges

IMAGE = ("--steps", "1", "--device", "cpu", "--size", "32")


def picture(tmp_path, *more, dtype="float32"):
    return call(
        "t2i", "a cat", "--model", "sd14", "--dtype", dtype, *IMAGE, "-o", tmp_path / "cat.png", *more
    )


def weights(hub):
    return {k.removeprefix(f"{SD14}/") for k in hub.sent if k.endswith(".safetensors")}


def refused(answer, *texts):
    lines = [line for line in answer.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert answer.code == 4 and len(lines) == 2, answer.err
    for text in texts:
        assert text in " ".join(lines)


class TestUse:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_first_use_fetches_what_is_needed_and_the_second_nothing(self, hub, sd14_files, tmp_path, dtype):
        hub.add(SD14, sd14_files)
        first = picture(tmp_path, dtype=dtype)
        assert first.code == 0, first.err
        half = dtype != "float32"
        assert {k.removeprefix(f"{SD14}/") for k in hub.sent} == needed(sd14_files, half)
        assert "to be fetched: CompVis/stable-diffusion-v1-4 (the model)" in first.err
        made = (tmp_path / "cat.png").read_bytes()
        hub.requests.clear()
        second = picture(tmp_path, "-y", "--offline", dtype=dtype)
        assert second.code == 0, second.err
        assert not hub.requests and (tmp_path / "cat.png").read_bytes() == made

    def test_with_everything_there_the_hub_is_not_asked(self, hub, sd14_files, tmp_path):
        hub.add(SD14, sd14_files)
        assert call("models", "pull", "sd14").code == 0
        hub.requests.clear()
        assert picture(tmp_path, dtype="bfloat16").code == 0, "full precision serves half"
        assert not hub.requests

    def test_fp16_files_alone_do_not_pass_for_full_precision(self, hub, sd14_files, tmp_path):
        hub.add(SD14, sd14_files)
        assert call("models", "pull", "sd14", "--half").code == 0
        refused(picture(tmp_path, "--offline"), "not wholly in the cache")
        assert picture(tmp_path).code == 0
        assert "unet/diffusion_pytorch_model.safetensors" in weights(hub)

    def test_a_dry_run_says_what_would_be_fetched(self, hub, sd14_files, tmp_path):
        hub.add(SD14, sd14_files)
        answer = picture(tmp_path, "--dry-run", "--json")
        assert answer.code == 0, answer.err
        (one,) = answer.table["downloads"]
        assert (one["id"], one["total"]) == (SD14, sum(len(sd14_files[n]) for n in needed(sd14_files)))
        assert not weights(hub) and not (tmp_path / "cat.png").exists()
        assert call("models", "pull", "sd14").code == 0
        assert picture(tmp_path, "--dry-run", "--json").table["plan"]["model"] == SD14

    def test_without_a_prompt_blip2_is_announced(self, hub, sd14_files, clip_files, clip, tmp_path):
        from ctxedit.stages.caption import BLIP2

        hub.add(SD14, sd14_files)
        hub.add(BLIP2, clip_files)
        run = ("tune", clip, "--model", "sd14", "--dry-run", "--json", "--runs", tmp_path / "runs")
        assert [d["id"] for d in call(*run).table["downloads"]] == [SD14, BLIP2]
        assert [d["id"] for d in call(*run, "--prompt", "a cat").table["downloads"]] == [SD14]

    def test_gigabytes_are_not_fetched_unasked(
        self, hub, sd14_files, clip_files, clip, tmp_path, monkeypatch
    ):
        from ctxedit.cli import fetching
        from ctxedit.stages.caption import BLIP2

        monkeypatch.setattr(fetching, "CONFIRM_ABOVE", 1000)
        hub.add(SD14, sd14_files)
        hub.add(BLIP2, clip_files)
        answer = call("tune", clip, "--model", "sd14", "--runs", tmp_path / "runs")
        assert answer.code == 2 and "-y" in answer.err and "--prompt" in answer.err and BLIP2 in answer.err
        assert not weights(hub)

    def test_a_broken_clip_is_told_before_anything_is_fetched(self, hub, sd14_files, tmp_path):
        hub.add(SD14, sd14_files)
        (tmp_path / "clip.mp4").write_bytes(b"no video")
        run = ("run", tmp_path / "clip.mp4", "a cat", "--model", "sd14", "--prompt", "a dog")
        assert call(*run, "--runs", tmp_path / "runs").code == 3
        assert not hub.requests

    @pytest.mark.parametrize(
        ("said", "inside"),
        [("artist/style", "pytorch_lora_weights.safetensors"), ("artist/style/old/v1.safetensors:0.5", None)],
    )
    def test_a_lora_is_fetched_with_the_model(self, hub, sd14_files, tmp_path, said, inside):
        import torch
        from safetensors.torch import save

        layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
        a, b = torch.ones(1, 32), torch.ones(16, 1)
        data = save({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b})
        names = ("pytorch_lora_weights.safetensors", "old/v1.safetensors", "step-100.safetensors")
        hub.add(SD14, sd14_files)
        hub.add("artist/style", dict.fromkeys(names, data) | {"README.md": b"style"})
        planned = picture(tmp_path, "--lora", said, "--dry-run", "--json").table["downloads"]
        assert [one["for"] for one in planned] == ["the model", "the LoRA"]
        assert planned[1]["bytes"] == len(data)
        answer = picture(tmp_path, "--lora", said)
        assert answer.code == 0, answer.err
        sent = {k for k in hub.sent if k.startswith("artist/style/")}
        assert sent == {f"artist/style/{inside or 'old/v1.safetensors'}"}
        hub.requests.clear()
        assert picture(tmp_path, "--lora", said, "--offline", "-y").code == 0 and not hub.requests

    def test_bench_asks_too(self, hub, sd14_files, clip_files, clip, tmp_path, monkeypatch):
        from ctxedit.cli import fetching
        from ctxedit.metrics.evaluate import CLIP

        monkeypatch.setattr(fetching, "CONFIRM_ABOVE", 1000)
        hub.add(SD14, sd14_files)
        hub.add(CLIP, clip_files)
        answer = call("bench", "run", "--presets", "ddim", "--model", "sd14", "--out", tmp_path / "bench")
        assert answer.code == 2 and "-y" in answer.err and SD14 in answer.err, answer.err
        assert not weights(hub)

    def test_the_controlnet_is_fetched_where_it_fits(self, hub, sd14_files, controlnet, clip, tmp_path):
        from ctxedit.models.control import CANNY_SD1

        def wide(files, name, width):
            config = json.loads(files[name]) | {"cross_attention_dim": width}
            return files | {name: json.dumps(config).encode()}

        run = ("tune", clip, "--model", "sd14", "--prompt", "a cat", "--set", "control.kind=canny")
        run = (*run, "--dry-run", "--json", "--runs", tmp_path / "runs")
        hub.add(SD14, wide(sd14_files, "unet/config.json", 1024))
        hub.add(CANNY_SD1, wide(files_of(controlnet), "config.json", 1280))
        unknown = call(*run)
        assert unknown.code == 2 and "no ControlNet is known" in unknown.err
        hub.add(SD14, wide(sd14_files, "unet/config.json", 768))
        shutil.rmtree(tmp_path / "cache")
        misfit = call(*run)
        assert misfit.code == 2 and "cross-attention width 1280, not 768" in misfit.err
        hub.add(CANNY_SD1, wide(files_of(controlnet), "config.json", 768))
        shutil.rmtree(tmp_path / "cache")
        assert [d["id"] for d in call(*run).table["downloads"]] == [SD14, CANNY_SD1]
        assert not any(name.endswith(".safetensors") for name in hub.sent)

    def test_ls_says_what_is_missing(self, hub, sd14_files, clip_files):
        from ctxedit.metrics.evaluate import CLIP
        from ctxedit.stages.caption import BLIP2

        hub.add(SD14, sd14_files)
        hub.add(BLIP2, clip_files)
        hub.add(CLIP, clip_files)
        ls = ("models", "ls", "--model", "sd14", "--json")
        assert [m["id"] for m in call(*ls).table["missing"]] == [SD14, BLIP2, CLIP]
        assert call("models", "pull", "sd14", "--half").code == 0
        table = call(*ls).table
        assert [m["id"] for m in table["missing"]] == [SD14, BLIP2, CLIP], "float32 is asked for"
        assert {n["name"]: n["cached"] for n in table["named"]}["sd14"] == "half"
        assert call("models", "pull", "sd14").code == 0
        table = call(*ls).table
        assert [m["id"] for m in table["missing"]] == [BLIP2, CLIP]
        assert {n["name"]: n["cached"] for n in table["named"]}["sd14"] == "full"


class TestSingleFile:
    """Weights alone, everything else derived from them."""

    def test_nothing_is_fetched(self, hub, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(write_merges(tmp_path / "site-packages"))
        file = save_single(make_pipeline("sd1"), tmp_path / "model.safetensors")
        answer = call("t2i", "a cat", "--model", file, *IMAGE, "-o", tmp_path / "cat.png")
        assert answer.code == 0, answer.err
        assert not hub.requests


class TestLayouts:
    """Folders as people have them: by the dry run, and loaded."""

    @pytest.fixture()
    def copy(self, stable_diffusion, tmp_path):
        return shutil.copytree(stable_diffusion, tmp_path / "model")

    def draw(self, folder, tmp_path, *more):
        options = ("--dtype", "float32", *IMAGE, "-y", "-o", tmp_path / "cat.png", *more)
        return call("t2i", "a cat", "--model", folder, *options)

    def drawn(self, folder, tmp_path):
        """The picture's pixels: the file itself also names the model that drew it."""
        answer = self.draw(folder, tmp_path)
        assert answer.code == 0, answer.err
        return imageio.v3.imread(tmp_path / "cat.png").tobytes()

    def test_fp16_only(self, copy, tmp_path):
        for file in copy.glob("*/*.safetensors"):
            file.with_suffix(".fp16.safetensors").write_bytes(halved(file.read_bytes()))
            file.unlink()
        assert self.draw(copy, tmp_path, "--dry-run").code == 0
        assert self.drawn(copy, tmp_path)

    def test_full_precision_is_loaded_beside_fp16(self, copy, stable_diffusion, tmp_path):
        for file in copy.glob("*/*.safetensors"):
            file.with_suffix(".fp16.safetensors").write_bytes(b"never read")
        assert self.drawn(copy, tmp_path) == self.drawn(stable_diffusion, tmp_path)

    def test_shards(self, copy, stable_diffusion, tmp_path):
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        from ctxedit.models.sizes import folder_weight

        for part, cls in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
            shutil.rmtree(copy / part)
            model = cls.from_pretrained(stable_diffusion / part)
            model.save_pretrained(copy / part, max_shard_size="100KB")
            assert len(list((copy / part).glob("*.safetensors"))) > 1
            assert folder_weight(copy / part).parameters == folder_weight(stable_diffusion / part).parameters
        assert self.drawn(copy, tmp_path) == self.drawn(stable_diffusion, tmp_path)
        sorted((copy / "unet").glob("*.safetensors"))[1].unlink()
        refused(self.draw(copy, tmp_path, "--dry-run"), "shards")

    def test_extra_folders_and_files_are_not_looked_at(self, copy, stable_diffusion, tmp_path):
        for name in ("safety_checker/model.safetensors", "unet_onnx/model.onnx", "unet/old.safetensors"):
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_bytes(b"never read")
        (copy / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"never read")
        assert self.drawn(copy, tmp_path) == self.drawn(stable_diffusion, tmp_path)

    def scheduler(self, copy, **changes):
        file = copy / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    @pytest.mark.parametrize(
        "named",
        [
            "PNDMScheduler",
            "EulerAncestralDiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "UniPCMultistepScheduler",
        ],
    )
    def test_any_scheduler_of_the_same_levels(self, copy, stable_diffusion, tmp_path, named):
        self.scheduler(copy, _class_name=named)
        assert self.drawn(copy, tmp_path) == self.drawn(stable_diffusion, tmp_path)

    def test_velocity_from_zero_signal(self, copy, tmp_path):
        changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        self.scheduler(copy, prediction_type="v_prediction", **changes)
        assert self.drawn(copy, tmp_path)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "zero signal"),
            ({"rescale_betas_zero_snr": True, "timestep_spacing": "linspace"}, "zero signal"),
            ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
            ({"prediction_type": "flow_prediction"}, "flow matching"),
            ({"prediction_type": "depth"}, "'depth'"),
            ({"beta_schedule": "sigmoid"}, "'sigmoid'"),
            ({"timestep_spacing": "karras"}, "'karras'"),
        ],
    )
    def test_schedulers_that_are_refused_at_the_dry_run(self, copy, tmp_path, changes, text):
        self.scheduler(copy, **changes)
        refused(self.draw(copy, tmp_path, "--dry-run"), text)

    @pytest.mark.parametrize(
        "named", ["StableDiffusionInpaintPipeline", "FluxPipeline", "StableDiffusion3Pipeline", "None"]
    )
    def test_unknown_families_are_refused_at_the_dry_run(self, copy, tmp_path, named):
        index = json.loads((copy / "model_index.json").read_text()) | {"_class_name": named}
        (copy / "model_index.json").write_text(json.dumps(index))
        refused(self.draw(copy, tmp_path, "--dry-run"), named)
