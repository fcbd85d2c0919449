"""``ctxedit t2i``: text to image on the same core."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctxedit import __version__
from ctxedit.cli import arguments
from ctxedit.cli.failures import resumable
from ctxedit.cli.options import (
    AddonOptions,
    MessageOptions,
    SamplingOptions,
    SettingOptions,
    SizeOptions,
    UpscaleOptions,
)
from ctxedit.cli.output import Screen, alone_with, finished_before
from ctxedit.cli.output_options import DryRunOption, OverwriteOption
from ctxedit.cli.t2i_labels import LabelOptions, add_to_plan, drawn
from ctxedit.errors import ConfigError
from ctxedit.files import check_file
from ctxedit.tables import DEFAULT_PRESET

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ctxedit.config import Config
    from ctxedit.editing.label_to_image import LabelRequest

Text = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT", help="What the image should show; may be left out with labels.", show_default=False
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Output image: png, jpg or webp. [default: TEXT.png, CLASS.png]",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        help="Context adapter, e.g. tune/adapter.safetensors of a run. [default: the model's, if it has one]",
        show_default=False,
    ),
]
NoAdapter = Annotated[bool, typer.Option("--no-adapter", help="Leave out the model's context adapter.")]

NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Do not record in the image how it was made.")
]


#: What is fetched for an image, by the names of :mod:`ctxedit.cli.fetching`.
_NEEDED = ("the model", "the LoRA", "the embedding", "the upscaler")


def t2i(
    labelled: LabelOptions,
    base: SettingOptions,
    addons: AddonOptions,
    size: SizeOptions,
    sampling: SamplingOptions,
    upscaling: UpscaleOptions,
    overwrite: OverwriteOption,
    dry: DryRunOption,
    messages: MessageOptions,
    text: Text = None,
    output: Image = None,
    adapter: Adapter = None,
    no_adapter: NoAdapter = False,
    no_metadata: NoMetadata = False,
) -> None:
    """Generate an image from text, a class or a layout, and print its path."""
    screen = Screen(messages.quiet, messages.json)
    labelled.check(text, adapter, no_adapter)
    text = text or ""
    _check_adapter(adapter, no_adapter)
    config = arguments.settings(base, screen, addons, size, sampling, upscaling)

    from ctxedit.editing import text_to_image
    from ctxedit.editing.keys import image_key

    path = output or Path(f"{_name(labelled.name if labelled.given else text)}.png")
    if not _fetched(config, text, screen, overwrite.yes, base.offline, dry.dry_run):
        return
    wanted = labelled.request(text, config) if labelled.given else None
    if adapter is None and not no_adapter and wanted is None:
        adapter = text_to_image.own_adapter(config)
    files = [one for one in (adapter, labelled.layout, wanted.encoder.folder if wanted else None) if one]
    key = image_key(config, base.offline, files, text, labelled.facts(), no_metadata, __version__)
    shown = {"text": text} if wanted is None else labelled.shown(wanted)
    result = {"image": path, **shown, "seed": config.seed}

    def plan() -> dict[str, Any]:
        offline, files = base.offline or dry.dry_run, arguments.sources(base)
        made = text_to_image.plan(text, config, offline, path, overwrite.yes, adapter, files, labelled.layout)
        add_to_plan(made, wanted)
        return made

    if dry.dry_run:
        planned = plan()
        return screen.result(_planned(path, planned), {"plan": planned})
    with alone_with(path, screen):
        if finished_before(path, key, overwrite.yes, screen) is None:
            plan()
            screen.say(f"seed {config.seed}{f': {wanted.shows}' if wanted else ''}")
            made_with = {**shown, "adapter": adapter, **labelled.facts()}
            made_with |= {"output": {"output": output.name}} if output else {}
            about = None if no_metadata else _metadata(config, base, made_with)
            picture = _picture(text, config, base.offline, adapter, labelled, wanted, screen)
            _write(path, picture, overwrite.yes, about, key)
    screen.result(str(path), result)


def _picture(
    text: str, config: Config, offline: bool, adapter: Path | None, labelled: LabelOptions,
    wanted: LabelRequest | None, screen: Screen,
) -> NDArray[np.uint8]:  # fmt: skip
    """The image, RGB uint8 (H, W, 3), from text or from labels."""
    from ctxedit.cli.progress import teller
    from ctxedit.editing import text_to_image

    with resumable(None):
        if wanted is None:
            return text_to_image.generate(text, config, offline, teller(screen), adapter=adapter)[0]
        return drawn(wanted, labelled.grid, config, offline, teller(screen))


def _write(path: Path, picture: NDArray[np.uint8], overwrite: bool, about: str | None, key: str) -> None:
    """Write the image, and note that it answers the request of this key."""
    from ctxedit.finished import note
    from ctxedit.media.write import write_image

    with resumable(None):
        write_image(path, picture, overwrite=overwrite, about=about, complete=partial(note, path, key))


def _name(text: str) -> str:
    """A file name from the text's words, with a hash if what it leaves out may be the only difference."""
    from ctxedit.runs import key_of, slug

    name = slug(text, fallback="image")
    return name if text.isascii() and any(map(str.isalnum, text)) else f"{name}-{key_of(text)[:6]}"


def _fetched(config: Config, text: str, screen: Screen, agreed: bool, offline: bool, dry_run: bool) -> bool:
    """Download what an image needs, after asking; whether the command can go on."""
    from ctxedit.cli import fetching
    from ctxedit.editing.checks import check_text_ahead

    needs = [one for one in fetching.wanted(config) if one.what in _NEEDED]
    check = fetching.checks_model(config, text or None)
    early = partial(check_text_ahead, text, config)
    return fetching.settle(needs, screen, agreed, offline, dry_run, check, early)


def _metadata(config: Config, base: SettingOptions, made_with: dict[str, Any]) -> str:
    """How the image is made, as text to embed."""
    from ctxedit.provenance import facts, to_text

    return to_text(facts("image", config, base.preset or DEFAULT_PRESET, __version__, **made_with))


def _check_adapter(adapter: Path | None, no_adapter: bool) -> None:
    if adapter is not None and no_adapter:
        raise ConfigError("--adapter and --no-adapter contradict each other", "leave out one of them")
    if adapter is not None:
        check_file(adapter, "adapter (tune/adapter.safetensors of a run folder)")


def _planned(path: Path, plan: dict[str, Any]) -> str:
    """The plan in one line."""
    from ctxedit.cli.work import gib

    width, height = plan["size"]
    return (
        f"{path}: {width}×{height} by {plan['model']}, {plan['evaluations']} evaluations, "
        f"about {gib(plan['peak_bytes'])} of memory"
    )
