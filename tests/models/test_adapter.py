"""The context adapter and its shift: zero before tuning, then of x0, text, time and earlier frames."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from ctxedit.config import AdapterConfig
from ctxedit.diffusion.schedule import alphas_cumprod, levels
from ctxedit.errors import WeightsError
from ctxedit.models.adapter import ContextAdapter, causal_mask
from ctxedit.models.shift import ContextShift

SMALL = AdapterConfig(width=32, blocks=2, heads=4)
FRAMES, CHANNELS, TEXT = 8, 4, 24


def make(config=SMALL, zero=False, image_width=0):
    """An adapter with random weights; as if tuned, unless ``zero``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = ContextAdapter(config, CHANNELS, TEXT, image_width).double()
        if not zero:
            torch.nn.init.normal_(adapter.out.weight, std=0.2)
            torch.nn.init.normal_(adapter.out.bias, std=0.1)
    return adapter


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture()
def inputs():
    return draw(FRAMES, CHANNELS, 8, 8), draw(1, 7, TEXT, seed=1)


def frames_touched(before, after):
    """Which frames differ, at all."""
    return {i for i in range(len(before)) if not torch.equal(before[i], after[i])}


class TestOutput:
    def test_zero_before_tuning_exactly(self, inputs):
        x0, text = inputs
        for t in (1, 500, 999):
            assert torch.equal(make(zero=True)(x0, text, t, FRAMES), torch.zeros_like(x0))

    def test_only_the_last_projection_makes_it_zero(self, inputs):
        adapter = make(zero=True)
        assert {n for n, p in adapter.named_parameters() if not p.any() and ".bias" not in n} == {
            "out.weight"
        }
        torch.nn.init.normal_(adapter.out.weight)
        assert adapter(*inputs, 500, FRAMES).abs().min() > 0

    def test_depends_on_x0_text_and_time(self, inputs):
        x0, text = inputs
        adapter = make()
        r = adapter(x0, text, 500, FRAMES)
        assert r.shape == x0.shape
        other_x0 = x0.clone()
        other_x0[:, :, 3, 5] += 1
        other_text = text.clone()
        other_text[:, 4] += draw(TEXT, seed=2)
        for other in (
            adapter(other_x0, text, 500, FRAMES),
            adapter(x0, other_text, 500, FRAMES),
            adapter(x0, text, 480, FRAMES),
        ):
            assert frames_touched(r, other) == set(range(FRAMES))
            assert (other - r).abs().max() > 1e-4

    def test_one_pixel_reaches_every_position_of_its_frame(self, inputs):
        x0, text = inputs
        other = x0.clone()
        other[3, 0, 0, 0] += 1
        change = make()(other, text, 500, FRAMES) - make()(x0, text, 500, FRAMES)
        assert (change[3].abs().amax(0) > 0).all()

    @pytest.mark.parametrize("blocks, window", [(1, 3), (2, 3), (1, 2), (3, 1)])
    def test_a_frame_reaches_itself_and_those_after_it_within_the_window(self, inputs, blocks, window):
        """Each block looks back ``window − 1`` frames, so ``blocks`` of them reach that many times as far."""
        x0, text = inputs
        adapter = make(replace(SMALL, blocks=blocks, window=window))
        before = adapter(x0, text, 500, FRAMES)
        for j in (0, 2, FRAMES - 1):
            other = x0.clone()
            other[j] += draw(CHANNELS, 8, 8, seed=3)
            touched = frames_touched(before, adapter(other, text, 500, FRAMES))
            assert touched == set(range(j, min(FRAMES, j + blocks * (window - 1) + 1)))

    def test_a_first_frame_alone_is_the_first_frame_of_a_clip(self, inputs):
        x0, text = inputs
        torch.testing.assert_close(
            make()(x0, text, 9, FRAMES)[:1], make()(x0[:1], text, 9, 1), rtol=0, atol=1e-12
        )

    def test_frames_of_one_content_differ_by_nothing(self, inputs):
        """Frames have no numbers: a still clip gets a still shift."""
        x0, text = inputs
        r = make()(x0[:1].expand(FRAMES, -1, -1, -1), text, 500, FRAMES)
        torch.testing.assert_close(r, r[:1].expand_as(r), rtol=0, atol=1e-12)

    def test_clips_of_a_batch_do_not_see_each_other(self, inputs):
        x0, text = inputs
        other, other_text = draw(FRAMES, CHANNELS, 8, 8, seed=4), draw(1, 7, TEXT, seed=5)
        adapter = make()
        both = adapter(torch.cat([x0, other]), torch.cat([text, other_text]), torch.tensor([500, 20]), FRAMES)
        alone = torch.cat([adapter(x0, text, 500, FRAMES), adapter(other, other_text, 20, FRAMES)])
        torch.testing.assert_close(both, alone, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("patch", [1, 2, 3])
    @pytest.mark.parametrize("side", [(7, 5), (1, 1), (6, 9)])
    def test_odd_sides(self, patch, side):
        x0, text = draw(2, CHANNELS, *side), draw(1, 7, TEXT, seed=1)
        r = make(replace(SMALL, patch=patch))(x0, text, 500, 2)
        assert r.shape == x0.shape
        assert torch.isfinite(r).all()

    def test_the_bound_is_kept_and_its_middle_is_untouched(self, inputs):
        x0, text = inputs
        free = make()(x0, text, 500, FRAMES)
        bounded = make(replace(SMALL, bound=0.1))(x0, text, 500, FRAMES)
        assert free.abs().max() > 0.2
        assert bounded.abs().max() <= 0.1
        torch.testing.assert_close(bounded, 0.1 * torch.tanh(free / 0.1))
        loose = make(replace(SMALL, bound=1e6))(x0, text, 500, FRAMES)
        torch.testing.assert_close(loose, free, rtol=1e-9, atol=1e-9)
        far = make(replace(SMALL, bound=0.1))(x0 * 1e6, text, 500, FRAMES)
        assert far.abs().max() <= 0.1

    def test_clips_image_tokens(self, inputs):
        x0, text = inputs
        adapter = make(image_width=12)
        tokens = draw(FRAMES, 5, 12, seed=2)
        r = adapter(x0, text, 500, FRAMES, tokens)
        other = tokens.clone()
        other[4] += 1
        touched = frames_touched(r, adapter(x0, text, 500, FRAMES, other))
        assert min(touched) == 4
        with pytest.raises(ValueError, match="image tokens"):
            adapter(x0, text, 500, FRAMES)


def test_causal_mask_is_itself_and_two_before():
    assert causal_mask(5, 3).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_gradient_reaches_every_parameter_through_the_output(inputs):
    adapter = make()
    adapter(*inputs, 500, FRAMES).square().sum().backward()
    unread = {n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(".kv.bias" in n for n in unread), unread


def test_at_the_papers_scale_it_has_about_188_million_parameters_with_clip():
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig())  # the default is ViT-B/32
        adapter = ContextAdapter(AdapterConfig(), 4, 768)
    assert clip.config.vision_config.patch_size == 32
    total = sum(p.numel() for m in (clip, adapter) for p in m.parameters())
    assert total == pytest.approx(188e6, rel=0.03)


class TestFile:
    def test_round_trip(self, tmp_path, inputs):
        config = AdapterConfig(width=32, blocks=1, heads=2, patch=1, window=2, bound=0.3, scale="noise")
        adapter = make(config, image_width=12).float()
        adapter.save(tmp_path / "a.safetensors", prompt="a tiger")
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            about = file.metadata()
        assert about["prompt"] == "a tiger"
        assert '"bound": 0.3' in about["config"]
        again = ContextAdapter.load(tmp_path / "a.safetensors")
        assert again.config == config
        assert again.sizes == adapter.sizes
        x0, text = (x.float() for x in inputs)
        tokens = draw(FRAMES, 5, 12).float()
        assert torch.equal(again(x0, text, 500, FRAMES, tokens), adapter(x0, text, 500, FRAMES, tokens))

    def test_broken_files(self, tmp_path):
        path = tmp_path / "a.safetensors"
        with pytest.raises(WeightsError, match="not a context adapter"):
            ContextAdapter.load(path)
        path.write_bytes(b"not safetensors at all")
        with pytest.raises(WeightsError, match="not a context adapter"):
            ContextAdapter.load(path)
        make().save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError, match="not a context adapter"):
            ContextAdapter.load(path)

    def test_another_files_weights(self, tmp_path):
        from safetensors.torch import save_file

        path = tmp_path / "a.safetensors"
        save_file({"x": torch.zeros(1)}, path)
        with pytest.raises(WeightsError, match="not a context adapter"):
            ContextAdapter.load(path)
        make().save(path)
        with safe_open(path, "pt") as file:
            about = file.metadata()
        save_file({"x": torch.zeros(1)}, path, metadata=about)
        with pytest.raises(WeightsError, match="not a context adapter"):
            ContextAdapter.load(path)

    def test_nan_in_the_weights(self, tmp_path):
        adapter = make()
        adapter.out.bias.data[0] = math.nan
        adapter.save(tmp_path / "a.safetensors")
        with pytest.raises(WeightsError, match="NaN"):
            ContextAdapter.load(tmp_path / "a.safetensors")


class TestShift:
    used = levels(alphas_cumprod(), 5)

    def shift(self, **changes):
        return ContextShift(make(replace(SMALL, **changes)).float(), draw(1, 7, TEXT, seed=1), FRAMES)

    def test_it_is_k_times_r_at_each_level(self):
        shift, x0 = self.shift(), draw(FRAMES, CHANNELS, 8, 8)
        for level in range(1, 6):
            a = float(self.used.alpha[level])
            r = shift.adapter(x0.float(), shift.context.float(), self.used.timestep(level), FRAMES).double()
            b = shift.at(x0, self.used, level)
            assert b.dtype == x0.dtype
            torch.testing.assert_close(b, a * (1 - a) * r, rtol=1e-5, atol=1e-8)

    def test_nothing_at_clean_data(self):
        assert self.shift().at(draw(FRAMES, CHANNELS, 8, 8), self.used, 0) is None

    def test_k_at_the_noisy_end_is_not_zero_with_stable_diffusions_schedule(self):
        adapter = self.shift().adapter
        bar = alphas_cumprod()[-1]
        assert float(adapter.scale(bar.sqrt(), (1 - bar).sqrt())) == pytest.approx(0.064, abs=0.001)

    def test_the_published_variant_is_a_part_of_the_noise(self):
        shift, x0 = self.shift(scale="noise"), draw(FRAMES, CHANNELS, 8, 8)
        r = shift.adapter(x0.float(), shift.context.float(), self.used.timestep(3), FRAMES).double()
        b = shift.at(x0, self.used, 3)
        torch.testing.assert_close(b, 0.018125 * float(self.used.sigma[3]) * r, rtol=1e-5, atol=1e-8)

    def test_what_looks_through_clip_is_given_the_same_latents(self):
        seen = []

        def look(latents):
            seen.append(latents)
            return draw(FRAMES, 5, 12).float()

        shift = ContextShift(make(image_width=12).float(), draw(1, 7, TEXT), FRAMES, look)
        x0 = draw(FRAMES, CHANNELS, 8, 8)
        assert shift.at(x0, self.used, 2).shape == x0.shape
        assert torch.equal(seen[0], x0)


class TestKeptNorm:
    """adapter.norm = "kept": frame by frame the shifted signal is as strong as the signal."""

    def shift(self, text, zero=False, **changes):
        return ContextShift(make(replace(SMALL, **changes), zero=zero).float(), text, FRAMES)

    @pytest.mark.parametrize("more", [{}, {"bound": 0.1, "scale": "noise"}])
    def test_the_norm_is_each_frames_own(self, inputs, more):
        x0, text = inputs
        x0 = torch.linspace(0.2, 2, FRAMES, dtype=x0.dtype)[:, None, None, None] * x0
        b = self.shift(text, norm="kept", **more)(x0, 400, 0.6, 0.8)
        norms = (0.6 * x0 + b).flatten(1).norm(dim=1), (0.6 * x0).flatten(1).norm(dim=1)
        torch.testing.assert_close(*norms, rtol=1e-6, atol=0)

    def test_it_is_the_free_one_brought_back(self, inputs):
        x0, text = inputs
        free, kept = (self.shift(text, norm=norm)(x0, 400, 0.6, 0.8) for norm in ("free", "kept"))
        moved = 0.6 * x0 + free
        ratio = (0.6 * x0).flatten(1).norm(dim=1) / moved.flatten(1).norm(dim=1)
        torch.testing.assert_close(kept, moved * ratio[:, None, None, None] - 0.6 * x0, rtol=1e-5, atol=1e-6)
        assert (kept - free).abs().max() > 1e-3

    def test_an_untuned_adapter_still_changes_nothing(self, inputs):
        x0, text = inputs
        b = self.shift(text, zero=True, norm="kept")(x0.float(), 400, 0.6, 0.8)
        assert torch.equal(b, torch.zeros_like(b))

    def test_it_is_saved_with_the_adapter(self, tmp_path):
        make(replace(SMALL, norm="kept")).save(tmp_path / "a.safetensors")
        assert ContextAdapter.load(tmp_path / "a.safetensors").config.norm == "kept"
