"""PickScore, LPIPS and DINO structure on small networks in the published layouts, against plain formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from ctxedit.errors import ConfigError, WeightsError
from ctxedit.metrics import Edit, Networks
from ctxedit.metrics.registry import named
from ctxedit.metrics.scores import learned
from ctxedit.models.weights import BUILTIN_FOLDER


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, 64, 96, 3)).astype(np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViTModel of 32 pixels and patches of 8, saved without a pooler as DINO's is."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False)
    path = tmp_path_factory.mktemp("dino") / "tiny"
    model.save_pretrained(path)
    return path


def value(key, frames, **more):
    (metric,) = named([key])
    networks = Networks(None, offline=True, weights={key: str(more.pop("weights"))})
    edit = Edit(frames[0], networks, **more)
    metric.prepare(networks)
    return edit.score(metric)


def test_pickscore_is_the_models_own_logit(frames):
    from transformers import CLIPModel

    folder = BUILTIN_FOLDER / "clip"
    scorer = learned.ClipScorer(folder)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    pixels = scorer._prepare(list(frames[0]))
    tokens = scorer._tokenizer(["a cat"], return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels, **{k: tokens[k] for k in ("input_ids", "attention_mask")})
    expected = float(logits.logits_per_image.mean())
    assert value("pickscore", frames, target="a cat", weights=folder) == pytest.approx(expected, rel=1e-4)


def test_dino_structure_against_the_plain_formula(frames, vit):
    from transformers import ViTModel

    dino = learned.Dino(vit, "cpu")
    model = ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    found = []
    for clip in frames:
        pixels = torch.stack([dino._pixels(frame) for frame in clip])
        assert pixels.shape == (3, 3, 32, 48), "the shorter edge is the network's side"
        with torch.no_grad():
            states = model(
                pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True
            ).hidden_states
            layer = model.layers[-1]
            found.append(layer.attention.k_proj(layer.layernorm_before(states[-2])))
    assert found[0].shape == (3, 1 + 4 * 6, 16), "the class token is one of the tokens"
    similar = [cosine_similarity(k[:, :, None], k[:, None], dim=-1) for k in found]
    expected = float((similar[0] - similar[1]).square().mean())
    assert value("dino_structure", frames, source=frames[1], weights=vit) == pytest.approx(expected, rel=1e-4)
    assert value("dino_structure", frames, source=frames[0], weights=vit) == 0


def test_dino_sees_at_most_480_of_224(vit):
    long = np.zeros((1, 20, 200, 3), np.uint8)
    assert learned.Dino(vit, "cpu")._pixels(long[0]).shape == (3, 7, 69)


def test_lpips_against_the_plain_formula(frames, tmp_path):
    pytest.importorskip("scipy")
    torch.manual_seed(0)
    state = {}
    for place, (out, into, side) in {
        0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)
    }.items():  # fmt: skip
        state[f"features.{place}.weight"] = torch.randn(out, into, side, side) / (into * side * side) ** 0.5
        state[f"features.{place}.bias"] = torch.zeros(out)
    path = tmp_path / "alexnet.pth"
    torch.save({**state, "classifier.1.weight": torch.zeros(1)}, path)
    try:
        found = value("lpips", frames, source=frames[1], weights=path)
    except ConfigError:
        pytest.skip("lpips is not installed")
    import lpips

    heads = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True
    )
    layers = learned._alexnet(state, path)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    features = []
    for clip in frames:
        x = torch.from_numpy(clip).movedim(-1, 1).float() / 127.5 - 1
        x, seen = (x - shift[:, None, None]) / scale[:, None, None], []
        with torch.no_grad():
            for at, layer in enumerate(layers):
                x = layer(x)
                if at in (1, 4, 7, 9, 11):
                    seen.append(normalize(x, dim=1))
        features.append(seen)
    total = sum(
        ((a - b).square() * heads[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
        for k, (a, b) in enumerate(zip(*features, strict=True))
    )
    assert found == pytest.approx(float(total.mean()), rel=1e-4)
    assert value("lpips", frames, source=frames[0], weights=path) == 0


@pytest.mark.parametrize(
    ("key", "named_weights"), [("pickscore", learned.PICKSCORE), ("dino_structure", learned.DINO)]
)
def test_missing_weights_are_named(key, named_weights):
    (metric,) = named([key])
    with pytest.raises(WeightsError, match=named_weights):
        metric.prepare(Networks(None, offline=True))


def test_missing_or_wrong_alexnet_is_named(monkeypatch, tmp_path):
    pytest.importorskip("scipy")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (metric,) = named(["lpips"])
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    try:
        for weights, said in (
            ({}, "offline"),
            ({"lpips": "other.pth"}, "not hold"),
            ({"lpips": "text.pth"}, "read"),
        ):
            weights = {key: str(tmp_path / name) for key, name in weights.items()}
            with pytest.raises(WeightsError, match=said):
                metric.prepare(Networks(None, offline=True, weights=weights))
    except ConfigError:
        pytest.skip("lpips is not installed")


def test_on_the_command_line(frames, vit, tmp_path):
    from asking import call

    from ctxedit.media.write import write_clip

    for name, clip in zip(("edit", "source"), frames, strict=True):
        write_clip(tmp_path / name, clip, 8)
    ask = (
        "eval",
        "--video",
        tmp_path / "edit",
        "--prompt",
        "a cat",
        "--source",
        tmp_path / "source",
        "--offline",
    )
    answer = call(
        *ask, "--metrics", "dino_structure,psnr", "--weights", f"dino_structure={vit}", "--json", "-q"
    )
    assert answer.code == 0 and answer.table["dino_structure"] > 0, answer.err
    answer = call(*ask, "--metrics", "pickscore")
    assert answer.code == 4 and learned.PICKSCORE in answer.err and answer.err.count("error:") == 1
    assert call(*ask, "--metrics", "psnr", "--weights", "lpips=x").code == 2
    assert call(*ask, "--weights", "lpips").code == 2


def test_bench_measures_them_when_asked_and_misses_them_before_the_first_edit(vit, monkeypatch):
    from ctxedit.bench.figures import columns, identity, prepared

    assert "dino_structure" not in {one.key for one in columns()}
    assert identity(["dino_structure"]) == [("dino_structure", "ctxedit.metrics.scores.learned", 1)]
    monkeypatch.setattr(learned, "DINO", str(vit))
    networks = prepared(["dino_structure"], torch.device("cpu"), True)
    assert isinstance(networks.once("dino_structure", lambda: None), learned.Dino)
    with pytest.raises(WeightsError, match="PickScore"):
        prepared(["pickscore"], torch.device("cpu"), True)
