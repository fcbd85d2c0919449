"""The methods that ContextDiff is compared with, from the command line, on a tiny Stable Diffusion."""

from pathlib import Path

import pytest
from asking import TARGET, call
from safetensors.torch import load_file

from ctxedit.tables import tomllib

PROMPT = "a tiger walking on the beach"
#: The tiny network has levels of 16 and 32 channels, its finest attention is at 16².
FITS = {
    "fatezero": ("--set", "attention.min_channels=32"),
    "fatezero-shape": ("--set", "fusion.mask_resolution=0.5"),
    "tune-a-video": (),
    "controlvideo": (),
}


@pytest.fixture(scope="module")
def arguments(clip, stable_diffusion, controlnet, tmp_path_factory):
    """Makes the arguments of a short run of a preset; all runs of this module share one folder."""
    runs = tmp_path_factory.mktemp("rivals")

    def make(preset, *more):
        return (
            clip, "--preset", preset, "--model", stable_diffusion, "--prompt", PROMPT, "--frames", 4,
            "--stride", 1, "--steps", 4, "--set", "clip_model=builtin", "--runs", runs,
            "--set", f"control.model={controlnet}", *FITS[preset], *more,
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def published(arguments):
    """Frames of FateZero's edit by the preset."""
    return edited(call("run", *arguments("fatezero"), "--target", TARGET, "--json"))[0]


def edited(answer):
    """The frames of the newest edit of a run, as they were sampled; and the run's folder."""
    assert answer.code == 0, answer.err
    folder = Path(answer.table["run"])
    files = (folder / "edits").glob("*.safetensors")
    return load_file(max(files, key=lambda file: file.stat().st_mtime_ns))["frames"], folder


@pytest.mark.parametrize("preset", FITS)
def test_plan_and_edit(ctxedit, arguments, preset):
    tuned = () if preset == "fatezero" else ("--tune-steps", 2)
    asked = ("run", *arguments(preset, *tuned), "--target", TARGET, "--json")
    plan = ctxedit(*asked, "--dry-run").table["plan"]
    passes = {stage["name"].split()[0]: stage["evaluations"] for stage in plan["stages"]}
    # Guidance asks twice; a fused step once more for the source, and its mask once more.
    edit = {"fatezero": 8 + 2, "fatezero-shape": 8 + 2 + 2}.get(preset, 8)
    assert passes == {"tune": 2 if tuned else 0, "invert": 4, "round": 0, "edit": edit, "evaluate": 0}
    frames, folder = edited(ctxedit(*asked))
    assert frames.shape[0] == 4
    written = tomllib.loads((folder / "run.toml").read_text())
    settings = next(table for table in written.values() if isinstance(table, dict) and "attention" in table)
    assert settings["attention"]["group_norm"] == "clip"
    assert settings["invert"]["final_alpha"] == "checkpoint"
    if not tuned:
        return
    names = set(load_file(folder / "tune" / "tuned.safetensors"))
    assert not any(".norm." in name for name in names), "the temporal attention's norms are not tuned"
    rank = settings["attention"]["temporal_conv_rank"]
    assert rank == (160 if preset == "fatezero-shape" else 0)
    assert any(name.startswith("temporal.conv_in.") for name in names) == bool(rank)


@pytest.mark.parametrize(
    "setting",
    [
        "attention.group_norm=frame",
        "invert.final_alpha=one",
        "attention.min_channels=0",
        "attention.key_frame=0",
        "fusion.cross=replace",
    ],
)
def test_each_setting_makes_another_edit(ctxedit, arguments, published, setting):
    """Of FateZero, which tunes nothing: what differs is what the setting says."""
    asked = ("run", *arguments("fatezero"), "--target", TARGET, "--json")
    other, _ = edited(ctxedit(*asked, "--set", setting))
    assert (published != other).any()


def test_a_model_too_narrow_for_the_preset_is_refused_before_any_weight(ctxedit, arguments, no_weights):
    for more in ((), ("--dry-run",)):
        answer = ctxedit(
            "run", *arguments("fatezero"), "--target", TARGET, "--set", "attention.min_channels=640", *more
        )
        assert answer.code == 2 and "attention.min_channels = 640" in answer.err
        assert "hint: its layers have 16, 32: --set attention.min_channels=32 or less" in answer.err


@pytest.mark.parametrize(
    "said, wanted",
    [
        (("--set", "fusion.word_weights.panda=5"), "fusion.word_weights has no effect"),
        (("--set", 'tune.trainable_modules=["temporal_conv"]'), "no temporal convolutions"),
        (("--set", "attention.group_norm=batch"), "attention.group_norm"),
        (("--set", "invert.final_alpha=zero"), "invert.final_alpha"),
        (("--set", "attention.temporal_conv_rank=-1"), "attention.temporal_conv_rank"),
        (("--set", "attention.min_channels=-1"), "attention.min_channels"),
        (("--set", "fusion.word_weights_where=here"), "fusion.word_weights_where"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_hint(ctxedit, arguments, no_weights, said, wanted):
    answer = ctxedit("run", *arguments("tune-a-video"), "--target", TARGET, "--dry-run", *said)
    assert answer.code == 2 and wanted in answer.err
    assert answer.err.count("error:") == 1 and answer.err.count("hint:") == 1


def test_words_are_weighed_everywhere_where_it_is_asked_for(ctxedit, arguments):
    asked = ("run", *arguments("tune-a-video", "--tune-steps", 1), "--target", TARGET, "--json")
    plain, folder = edited(ctxedit(*asked))
    heavy = ("--set", "fusion.word_weights.panda=9", "--set", "fusion.word_weights_where=everywhere")
    weighed, same = edited(ctxedit(*asked, *heavy))
    assert same == folder and (plain != weighed).any()
