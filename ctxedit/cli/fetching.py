"""Before a large download: says what is downloaded, how much and where to, and asks."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import DownloadColumn, Progress

from ctxedit.cli.bars import bars
from ctxedit.cli.failures import resumable
from ctxedit.cli.output import Screen, debugging
from ctxedit.errors import ConfigError
from ctxedit.models.hub import gigabytes
from ctxedit.models.transfer import Watcher

if TYPE_CHECKING:
    from ctxedit.config import Config
    from ctxedit.editing.checks import Ahead
    from ctxedit.models.hub import Listing
    from ctxedit.models.layout import Select
    from ctxedit.models.transfer import Download
    from ctxedit.models.weights import Checkpoint

#: Bytes of a download above which the user is asked.
CONFIRM_ABOVE = 1_000_000_000
#: Seconds between lines of a long download where there is no terminal.
_EVERY = 30.0


@dataclass(frozen=True)
class Wanted:
    """A repository that a command needs.

    Attributes:
        hub_id, what: the repository, and what it is for.
        half: whether half precision is enough.
        hint: how to do without it.
        select: which of its files; None: those of a pipeline or of one network.
        only_with: a model; it is needed only if that is a Stable Diffusion 1.x. None: it is always needed.
    """

    hub_id: str
    what: str
    half: bool
    hint: str | None = None
    only_with: str | None = None
    select: Select | None = None

    @property
    def missing(self) -> bool:
        """Whether it is needed, as far as is known, and not in the cache."""
        from ctxedit.models import hub, weights

        if self.only_with is not None and not _takes_canny_sd1(self.only_with):
            return False
        if self.select is not None:
            return hub.cached(self.hub_id, self.select) is None
        return weights.in_cache(self.hub_id, self.half) is None


@dataclass(frozen=True)
class Planned:
    """A download that a command needs before it can start; ``small`` is what was fetched already."""

    wanted: Wanted
    listing: Listing
    names: tuple[str, ...]
    download: Download
    small: Checkpoint

    def table(self) -> dict[str, Any]:
        """For JSON."""
        found = self.download
        return {
            "id": found.hub_id, "for": self.wanted.what, "commit": found.commit, "bytes": found.bytes,
            "total": found.total, "files": len(found.missing), "to": str(found.place),
        }  # fmt: skip


def wanted(config: Config, captions: bool = False, scores: bool = False) -> list[Wanted]:
    """The repositories that settings name, whether they are in the cache or not.

    Args:
        config: settings.
        captions: whether the clip is captioned.
        scores: whether edits are scored with CLIP.
    """
    from ctxedit.metrics.evaluate import CLIP
    from ctxedit.model_names import SHORT_NAMES
    from ctxedit.models.control import CANNY_SD1
    from ctxedit.models.device import pick_device, pick_dtype
    from ctxedit.models.upscalers.checkpoints import X4_UPSCALER
    from ctxedit.models.weights import is_half, is_hub_id, own_folder, own_part
    from ctxedit.stages.caption import BLIP2, asks_clip

    half = is_half(pick_dtype(config.dtype, pick_device(config.device)))
    own = own_folder(config.model)
    found = []
    if is_hub_id(config.model):
        found.append(Wanted(SHORT_NAMES.get(config.model, config.model), "the model", half))
    found += _addons(config)
    control = config.control
    if control.kind != "none" and not (own is not None and control.model == "auto"):
        if control.model == "auto":
            found.append(Wanted(CANNY_SD1, "the ControlNet", half, only_with=config.model))
        else:
            found.append(Wanted(control.model, "the ControlNet", half))
    if config.upscale.scale > 1 and not own_part(config.upscale.model, own, "upscaler"):
        setting = config.upscale.model
        found.append(Wanted(X4_UPSCALER if setting == "auto" else setting, "the upscaler", half))
    if captions and config.captioner != "lavis" and not own_part(config.captioner, own, "captioner"):
        name = BLIP2 if config.captioner == "auto" else config.captioner
        found.append(Wanted(name, "the caption", half, "give --prompt, and no captioner is needed"))
    looks = scores or (config.adapter.enabled and config.adapter.image == "clip")
    looks = looks or (captions and asks_clip(config, own is not None))
    if looks and not own_part(config.clip_model, own, "clip"):
        found.append(Wanted(CLIP if config.clip_model == "auto" else config.clip_model, "scoring", False))
    return [one for one in found if is_hub_id(one.hub_id)]


def _addons(config: Config) -> list[Wanted]:
    """The repositories of LoRA files and embeddings."""
    from ctxedit.model_names import split_scale
    from ctxedit.models import embedding, layout, lora
    from ctxedit.models.addons import hub_file

    named: list[tuple[str, tuple[str, str | None] | None, tuple[str, ...]]]
    named = [("the LoRA", hub_file(split_scale(setting)[0]), lora.NAMES) for setting in config.lora]
    named += [("the embedding", hub_file(name), embedding.NAMES) for name in config.embedding]
    return [
        Wanted(one[0], what, False, select=layout.one_file(one[0], names, one[1]))
        for what, one, names in named if one is not None
    ]  # fmt: skip


def _takes_canny_sd1(model: str) -> bool:
    """Whether the ControlNet for Stable Diffusion 1.x fits a model; yes while its config is not there."""
    from ctxedit.files import expanded, read_json
    from ctxedit.models import hub
    from ctxedit.models.control import SD1_WIDTH
    from ctxedit.models.weights import is_hub_id

    folder = hub.snapshot(hub.full_id(model)) if is_hub_id(model) else expanded(model)
    file = None if folder is None else folder / "unet" / "config.json"
    if file is None or not file.is_file():
        return is_hub_id(model)
    return bool(read_json(file, "UNet's config").get("cross_attention_dim") == SD1_WIDTH)


def settle(
    needs: Sequence[Wanted], screen: Screen, yes: bool, offline: bool, dry_run: bool = False,
    check: Callable[[], object] = lambda: None, early: Callable[[Ahead], object] = lambda ahead: None,
) -> bool:  # fmt: skip
    """Fetch what is missing, after asking if the download is large; a dry run only reports it.

    Args:
        needs: the repositories.
        screen: where messages go.
        yes: do not ask.
        offline: do not contact the hub.
        dry_run: fetch nothing but config files.
        check: called before the hub is asked; raises for inputs that would make the download useless.
        early: likewise, once config files and tokenizers are there, with the repositories whose weights are
            not; and again when only large files are due, as LoRA files and embeddings are fetched first.

    Returns:
        Whether the command can go on: not after a dry run that found something missing.

    Raises:
        ConfigError: gigabytes, no terminal to ask on, and no ``-y``.
        WeightsError, OutputError: as for :func:`ctxedit.models.hub.fetch`.
    """
    if not any(one.missing for one in needs):
        return True
    check()
    missing = planned(needs, offline)
    early({one.listing.hub_id: one.small for one in missing})
    if dry_run:
        lines = [f"to be fetched first: {line(one)}" for one in missing]
        lines.append("The rest of the plan needs these: `ctxedit models pull` fetches them.")
        screen.result("\n".join(lines), {"downloads": [one.table() for one in missing]})
        return False
    agree(missing, screen, yes)
    addons = [one for one in missing if one.wanted.select is not None]
    large = [one for one in missing if one.wanted.select is None]
    _fetch(addons, screen)
    if addons and large:
        early({one.listing.hub_id: one.small for one in large})
    _fetch(large, screen)
    return True


def _fetch(missing: Sequence[Planned], screen: Screen) -> None:
    from ctxedit.models import hub

    for one in missing:
        with resumable(one.download.place), hub.watched(Bar(screen)):
            hub.fetch(one.listing, one.names)


def planned(needs: Sequence[Wanted], offline: bool) -> list[Planned]:
    """What is not in the cache, from the hub's listings; config files and tokenizers are fetched.

    Offline, the hub is not asked and nothing is planned.
    """
    from ctxedit.models import hub, weights

    found = []
    hush()
    for one in needs:
        if not one.missing:  # the model comes first: by now its config is there
            continue
        if hub.is_offline(offline):
            raise hub.offline_error(one.hub_id)
        there = hub.listing(one.hub_id)
        if one.what == "the model":
            weights.family_at(there)  # a model without an index is refused
        found.append(plan_for(one, there))
    return found


def plan_for(one: Wanted, there: Listing) -> Planned:
    """The download of a repository; raises for a model that its family cannot load."""
    from ctxedit.models import hub, weights

    select = one.select or weights.selection_at(there)
    names = tuple(select(there.names, one.half))
    small = weights.check_remote(there, names)
    return Planned(one, there, names, hub.download_of(there, names), small)


def hush() -> None:
    """Silence huggingface_hub's advice; its errors are reported in ctxedit's own words."""
    if not debugging():
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def checks_model(
    config: Config, prompt: str | None = None, targets: Sequence[str] = ()
) -> Callable[[], object]:
    """A check for :func:`settle`: prompts, a local model that can edit, a ControlNet that has its map."""

    def check() -> None:
        from ctxedit.model_names import is_own
        from ctxedit.models.backbones import family_of
        from ctxedit.models.control import check_settings
        from ctxedit.models.weights import is_hub_id, locate
        from ctxedit.prompts import check_texts

        check_texts(prompt, targets, config.edit.negative_prompt)
        check_settings(config.control, is_own(config.model))
        if not is_hub_id(config.model):
            family_of(locate(config.model, offline=True))

    return check


def checks_clip(
    clip: Path, config: Config, prompt: str | None = None, targets: Sequence[str] = ()
) -> Callable[[], object]:
    """As :func:`checks_model`, and that the clip has the frames that the settings ask for."""

    def check() -> None:
        checks_model(config, prompt, targets)()
        from ctxedit.media.probe import probe
        from ctxedit.media.read import span_of

        span = config.clip
        span_of(probe(clip), span.frames, span.start, span.stride)

    return check


def line(one: Planned) -> str:
    """One download as readable text."""
    found = one.download
    size = gigabytes(found.bytes) + (f" of {gigabytes(found.total)}" if found.bytes < found.total else "")
    return f"{found.hub_id} ({one.wanted.what}), {size}, to {found.place}"


def agree(missing: Sequence[Planned], screen: Screen, yes: bool, verb: str = "Download") -> None:
    """Say what will be fetched; ask if it is more than a gigabyte.

    Raises:
        ConfigError: there is no terminal to ask on.
        typer.Abort: the answer was no.
    """
    for one in missing:
        screen.say(f"to be fetched: {line(one)}")
        if one.wanted.hint:
            screen.say(f"  ({one.wanted.hint})")
    total = sum(one.download.bytes for one in missing)
    if total <= CONFIRM_ABOVE or yes:
        return
    if not (screen.console.is_terminal and sys.stdin is not None and sys.stdin.isatty()):
        ids = ", ".join(one.download.hub_id for one in missing)
        hints = [one.wanted.hint for one in missing if one.wanted.hint]
        raise ConfigError(
            f"{ids}: {gigabytes(total)} would be fetched, and without a terminal ctxedit cannot ask first",
            "; ".join(["add -y to agree, or fetch first with `ctxedit models pull`", *hints]),
        )
    typer.confirm(f"{verb} {gigabytes(total)}?", default=True, abort=True, err=True)


class Bar(Watcher):
    """A download on a terminal as a bar, elsewhere as a line every half a minute."""

    def __init__(self, screen: Screen) -> None:
        self.screen, self._done, self._total, self._name = screen, 0, 0, ""
        self._said = 0.0
        self._progress: Progress | None = None

    def begins(self, download: Download) -> None:
        """Show how much is to come."""
        self._name, self._total, self._done = download.hub_id, download.total, download.total - download.bytes
        self._said = time.monotonic()
        if self.screen.shows_bars:
            self._progress = bars(self.screen.console, DownloadColumn, transient=True)
            self._progress.start()
            self._progress.add_task(self._name, total=self._total, completed=self._done)

    def waits(self, name: str) -> None:
        """Say why there is no progress."""
        self.screen.say(f"{name} is being fetched by another process; waiting for it")

    def came(self, count: int) -> None:
        """Move on."""
        self._done += count
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._done)
        elif time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            self.screen.say(f"{self._name}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB")

    def ended(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
