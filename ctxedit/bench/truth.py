"""What an edit is compared with: the clip's own frames, the mask of what may change, the true edit."""

from __future__ import annotations

from pathlib import Path

from ctxedit.bench.figures import Truth
from ctxedit.bench.listing import Clip, Target
from ctxedit.bench.subject import mask_of
from ctxedit.config import ClipConfig
from ctxedit.editing.session import Session
from ctxedit.errors import InputError
from ctxedit.media.geometry import Fit
from ctxedit.media.mask import read_mask
from ctxedit.media.probe import probe
from ctxedit.media.read import Store
from ctxedit.stages.prepare import check_readable, read_working


def truth(session: Session, clip: Clip, target: Target) -> Truth:
    """The references that an edit of this target is compared with, read as the session reads the clip."""
    prepared, span = session.parts.prepared, session.config.clip
    path, mask, ideal = mask_of(clip, target), None, None
    if path is not None:
        mask = read_mask(path, span.frames, span.start, span.stride, prepared.fit, session.parts.store)
    if target.ideal is not None:
        _check_size(target.ideal, prepared.fit)
        ideal = read_working(target.ideal, span, prepared.fit, session.parts.store).frames
    return Truth(prepared.frames, mask, ideal)


def check_truth(clip: Clip, target: Target, span: ClipConfig, fit: Fit, store: Store) -> None:
    """Raise InputError for a mask or a true edit that cannot be read, is too short, or of another size."""
    if (path := mask_of(clip, target)) is not None:
        read_mask(path, span.frames, span.start, span.stride, fit, store)
    if target.ideal is not None:
        _check_size(target.ideal, fit)
        check_readable(target.ideal, span)


def _check_size(ideal: Path, fit: Fit) -> None:
    info = probe(ideal)
    if (info.width, info.height) != (fit.source_width, fit.source_height):
        raise InputError(f"the ideal edit {ideal} has another size than the clip", "make them equal")
