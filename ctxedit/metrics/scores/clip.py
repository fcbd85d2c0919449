"""Agreement of frames with words and with each other, as CLIP sees it."""

from __future__ import annotations

from ctxedit.metrics import Edit, formulas, metric


@metric("clip_text", title="CLIP-text", needs="target", better="higher", decimals=3, order=10)
def clip_text(edit: Edit) -> float:
    """mean cosine of frames and target prompt"""
    assert edit.target is not None
    return formulas.clip_text(edit.image_embeddings, edit.text_embedding(edit.target))


@metric("clip_temp", title="CLIP-temp", needs="", better="higher", decimals=3, order=20)
def clip_temp(edit: Edit) -> float | None:
    """mean cosine over all pairs of frames"""
    return formulas.clip_temp(edit.image_embeddings)


@metric("clip_temp_consecutive", title="consecutive", needs="", better="higher", decimals=3, order=30)
def clip_temp_consecutive(edit: Edit) -> float | None:
    """mean cosine of neighbouring frames"""
    return formulas.clip_temp_consecutive(edit.image_embeddings)


@metric(
    "frame_accuracy", title="frame acc.", needs="target source_prompt", better="higher", decimals=2, order=40
)
def frame_accuracy(edit: Edit) -> float:
    """share of frames nearer to target than source prompt"""
    assert edit.target is not None and edit.source_prompt is not None
    target, source = edit.text_embedding(edit.target), edit.text_embedding(edit.source_prompt)
    return formulas.frame_accuracy(edit.image_embeddings, target, source)
