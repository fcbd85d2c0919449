"""Checks the edits of a list: one that cannot be made is noted with the reason, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ctxedit.bench.listing import Clip, Target
from ctxedit.bench.subject import Bench, Method, mask_of, settings_for
from ctxedit.bench.truth import check_truth
from ctxedit.editing.checks import Known
from ctxedit.editing.request import Request
from ctxedit.errors import InputError
from ctxedit.media.geometry import Fit

_T = TypeVar("_T")
#: A target, and the key of its edit.
Due = tuple[Target, str]


class Checks(Generic[_T]):
    """Checks the edits of one clip by one method after another.

    Args:
        bench: whose edits.
        check: of a request; raises InputError for what cannot be edited, other errors for what ends it all.
        fit_of: how the clip fits the model, by what the check found; None if it does not tell.

    Attributes:
        refused: edits that cannot be made, by key, with the reason.
        failing: the same for people, by clip, or by clip and target where others of that clip can be made.
    """

    def __init__(
        self, bench: Bench, check: Callable[[Request], _T], fit_of: Callable[[_T], Fit | None]
    ) -> None:
        self.bench, self._check, self._fit_of = bench, check, fit_of
        self.refused: dict[str, str] = {}
        self.failing: dict[str, str] = {}
        self._compared: set[tuple[object, ...]] = set()

    def __call__(self, clip: Clip, method: Method, due: Sequence[Due]) -> _T | None:
        """What the check found for the edits that can be made; None if there are none."""
        if not due:
            return None
        try:
            return self._checked(clip, method, [target for target, _ in due])
        except InputError as error:
            if len(due) == 1:
                self._refuse(clip, {due[0][1]: (due[0][0], error.message)}, True)
                return None
        bad: dict[str, tuple[Target, str]] = {}
        for target, key in due:
            try:
                self._checked(clip, method, [target])
            except InputError as error:
                bad[key] = (target, error.message)
        good = [target for target, key in due if key not in bad]
        self._refuse(clip, bad, not good and len({why for _, why in bad.values()}) == 1)
        return self._checked(clip, method, good) if good else None

    def give_up(self) -> None:
        """Raise InputError for a list of which no edit can be made."""
        name, why = next(iter(self.failing.items()))
        raise InputError(f"no clip of the list can be edited; {name}: {why}")

    def _refuse(self, clip: Clip, bad: dict[str, tuple[Target, str]], whole: bool) -> None:
        for key, (target, why) in bad.items():
            self.refused[key] = why
            self.failing[clip.name if whole else f"{clip.name}, “{target.prompt}”"] = why

    def _checked(self, clip: Clip, method: Method, targets: Sequence[Target]) -> _T:
        request = self.bench.request(clip, method, [target.prompt for target in targets])
        found = self._check(request)
        fit, span = self._fit_of(found), settings_for(clip, method).clip
        for target in targets:
            if fit is None:
                break
            compared = (mask_of(clip, target), target.ideal, span, fit)
            if compared not in self._compared:
                check_truth(clip, target, span, fit, Known(request).store)
                self._compared.add(compared)
        return found
