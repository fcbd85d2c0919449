"""The check of the built-in models, on a small slice."""

from ctxedit.bundled.training.check import check
from ctxedit.bundled.training.judge import ANSWERS, ask, load_judge, truth
from ctxedit.bundled.world import scenes
from ctxedit.models.weights import BUILTIN_FOLDER


def test_the_check_measures_every_part():
    rows = {(r.part, r.figure): r for r in check(count=5)}
    assert {part for part, _ in rows} == {"autoencoder", "CLIP", "captioner", "text-to-image"}
    assert rows["autoencoder", "PSNR, dB"].value > 24
    assert rows["CLIP", "falls when the background is wrong"].value >= 0.6
    assert all(0 <= r.value <= 1 for r in rows.values() if r.figure != "PSNR, dB")


def test_the_judge_is_right_about_drawn_scenes():
    import numpy as np

    judge = load_judge(BUILTIN_FOLDER / "judge")
    rng = np.random.default_rng(5)
    drawn = [scenes.draw_scene(rng, pairs=0.0) for _ in range(60)]
    said = ask(judge, np.stack([scenes.render_frame(s, 0.5)[0] for s in drawn]))
    for question in ANSWERS:
        right = [a[question] == truth(s)[question] for a, s in zip(said, drawn, strict=True)]
        assert np.mean(right) > 0.9, question
