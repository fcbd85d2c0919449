"""Stable Diffusion XL on a tiny random checkpoint: against diffusers' pipeline, and through the presets."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import TARGET, call
from diffusers import StableDiffusionXLPipeline
from tiny import make_sdxl

from ctxedit.config import AttentionConfig, preset_names
from ctxedit.errors import WeightsError
from ctxedit.media.write import write_clip
from ctxedit.models.attention import FrameView
from ctxedit.models.backbones import family_of, load_backbone
from ctxedit.models.weights import SHORT_NAMES, locate
from ctxedit.patterns import attended_frames
from ctxedit.stages.sample import Sampling, sample

CPU = torch.device("cpu")
PROMPT = "a tiger walking on the beach"
#: Those whose ControlNet is one for Stable Diffusion 1.x.
CONTROLLED = ("controlvideo", "controlvideo+adapter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(str(folder), CPU, torch.float32)


@pytest.fixture(scope="module")
def diffusers_pipeline(folder):
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames, Fraction(8))


def copy_of(folder, place, part, **changes):
    """The checkpoint with another value in one config; weights are linked."""
    copy = shutil.copytree(folder, place / "model", copy_function=lambda a, b: Path(b).symlink_to(a))
    file = copy / part
    table = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(table | changes))
    return copy


def test_its_short_name():
    assert SHORT_NAMES["sdxl"] == "stabilityai/stable-diffusion-xl-base-1.0"


def test_a_pass_on_its_own_deep_features_is_the_whole_pass(backbone):
    """The finest levels of this family have no attention."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    view, condition = FrameView(attended_frames(AttentionConfig(), 2), (8, 8)), backbone.condition([PROMPT])
    blocks = backbone.deep_blocks()
    with backbone.attention(AttentionConfig()):
        with blocks.kept() as features:
            whole = backbone.raw(x, 500, condition, view)
        with blocks.replaced_by(features[0]):
            assert torch.equal(backbone.raw(x, 500, condition, view), whole)
            assert not torch.equal(backbone.raw(x + 0.1, 500, condition, view), whole)


def test_prompts_are_encoded_as_diffusers_does(backbone, diffusers_pipeline):
    ours = backbone.condition(["", PROMPT])
    theirs = diffusers_pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=True, device=CPU)
    cond, uncond, pooled, pooled_uncond = theirs
    torch.testing.assert_close(ours.tokens, torch.cat([uncond, cond]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.pooled, torch.cat([pooled_uncond, pooled]), rtol=1e-5, atol=1e-6)
    assert ours.tokens.shape[-1] == backbone.context_width == 48


@pytest.mark.parametrize("negative", [None, "blurry"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_sampling_is_diffusers_pipeline(backbone, diffusers_pipeline, guidance, negative):
    """Same latents, prompt and guidance through DDIM; frames wider than high, which do not see each other."""
    frames, side, steps = 2, (8, 12), 4
    x = torch.randn(frames, 4, *side, generator=torch.Generator().manual_seed(0))
    want = diffusers_pipeline(
        [PROMPT] * frames, negative_prompt=None if negative is None else [negative] * frames,
        height=side[0] * 4, width=side[1] * 4, num_inference_steps=steps, guidance_scale=guidance,
        latents=x.clone(), output_type="latent",
    ).images  # fmt: skip
    view = FrameView(attended_frames(AttentionConfig(frames="none"), frames), side)
    context = backbone.condition([negative or "", PROMPT])
    with backbone.attention(AttentionConfig()):
        got = sample(backbone, x, context, backbone.levels(steps), view, Sampling(guidance))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert (got - x).abs().max() > 0.1


def test_frames_are_decoded_as_diffusers_does(backbone, diffusers_pipeline):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = diffusers_pipeline.vae.decode(latents / diffusers_pipeline.vae.config.scaling_factor).sample
    want = diffusers_pipeline.image_processor.postprocess(pixels, output_type="np")
    assert np.abs(backbone.decode(latents) - want * 255).max() <= 0.51


def test_each_branch_has_its_own_pooled_text_and_every_call_its_size(backbone):
    told = []
    hook = backbone.unet.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    view = FrameView(attended_frames(AttentionConfig(frames="none"), 3), (8, 12), branches=2)
    condition = backbone.condition(["a", "a panda"])
    with backbone.attention(AttentionConfig()), torch.no_grad():
        backbone.raw(torch.zeros(6, 4, 8, 12), 500, condition, view)
    hook.remove()
    assert torch.equal(told[0]["text_embeds"], condition.pooled.repeat_interleave(3, 0))
    assert told[0]["time_ids"].tolist() == [[32, 48, 0, 0, 32, 48]] * 6


@pytest.mark.parametrize(
    ("dtype", "kept"),  # of the second text encoder; on a CPU only the denoiser is in bfloat16
    [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)],
    ids=["fp16", "bf16"],
)
def test_the_autoencoder_is_in_float32_where_float16_overflows(folder, dtype, kept):
    backbone = load_backbone(str(folder), CPU, dtype)
    assert backbone.vae.dtype == torch.float32
    assert (backbone.unet.dtype, backbone.text_encoder_2.dtype) == (dtype, kept)
    frames = np.full((1, 32, 32, 3), 90, np.uint8)
    latents = backbone.encode(frames)
    assert latents.dtype == torch.float32 and backbone.decode(latents).shape == frames.shape


def test_an_autoencoder_mended_for_float16_stays_in_it(folder, tmp_path):
    copy = copy_of(folder, tmp_path, "vae/config.json", force_upcast=False)
    assert load_backbone(str(copy), CPU, torch.float16).vae.dtype == torch.float16


def test_its_sizes_are_known_before_it_is_loaded(folder, backbone):
    checkpoint = locate(str(folder))
    sizes = family_of(checkpoint).sizes(checkpoint)
    for name in ("factor", "multiple", "resolution", "latent_channels", "context_width", "context_length"):
        assert getattr(sizes, name) == getattr(backbone, name), name
    networks = (backbone.unet, backbone.vae, backbone.text_encoder, backbone.text_encoder_2)
    assert sizes.parameters == sum(p.numel() for net in networks for p in net.parameters())
    assert sizes.depth == (1, 2)


@pytest.mark.parametrize("preset", [p for p in preset_names() if p not in CONTROLLED])
def test_every_preset_without_a_controlnet_edits(folder, clip, tmp_path, preset):
    answer = call(
        "run", clip, "--model", folder, "--preset", preset, "--prompt", PROMPT, "--target", TARGET,
        "--set", "attention.min_channels=0",
        "--frames", 2, "--stride", 1, "--steps", 2, "--tune-steps", 2, "--runs", tmp_path, "--json",
        "--set", "clip_model=builtin", "--set", "adapter.width=32", "--set", "adapter.heads=4",
        "--set", "adapter.blocks=1", "--set", "fusion.mask_resolution=1.0",
        "--set", "fusion.max_resolution=1.0",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert list(tmp_path.rglob("*.mp4"))


class TestRefusals:
    def test_the_refiner(self, folder, tmp_path):
        copy = copy_of(folder, tmp_path, "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
        with pytest.raises(WeightsError, match="refine"):
            locate(str(copy))

    def test_a_refiner_that_calls_itself_a_base_model(self, folder, tmp_path):
        copy = copy_of(folder, tmp_path, "unet/config.json", projection_class_embeddings_input_dim=24 + 5 * 8)
        with pytest.raises(WeightsError, match="six size embeddings"):
            family_of(locate(str(copy)))
