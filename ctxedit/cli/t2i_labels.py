"""``ctxedit t2i --class`` and ``--layout``: images from labels instead of words, or in addition to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ctxedit.cli import arguments
from ctxedit.cli.options import option
from ctxedit.errors import ConfigError

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

    from ctxedit.config import Config
    from ctxedit.editing.label_to_image import LabelRequest
    from ctxedit.editing.reporter import Reporter


@dataclass(frozen=True)
class LabelOptions:
    """A class or a layout as the condition."""

    panel: ClassVar = "Labels"
    class_name: Annotated[
        str | None, option("--class", metavar="NAME", help="Show this class, e.g. tiger; TEXT may be added.")
    ] = None
    layout: Annotated[
        Path | None,
        option(
            "--layout", metavar="FILE", help="Show labelled boxes from a JSON file; see presets/README.md."
        ),
    ] = None
    grid: Annotated[
        bool,
        option(
            "--grid",
            help="Draw all classes, 8 samples of --class, or 8 samples of --layout with their boxes.",
        ),
    ] = False
    encoder: Annotated[
        Path | None,
        option("--encoder", metavar="DIR", help="Class or layout encoder. [default: the model's own]"),
    ] = None

    @property
    def given(self) -> bool:
        """Whether labels are given."""
        return self.class_name is not None or self.layout is not None or self.grid

    @property
    def name(self) -> str:
        """What the picture is called."""
        what = self.class_name or (self.layout.stem if self.layout else "classes")
        return f"{what} grid" if self.grid and what != "classes" else what

    def facts(self) -> dict[str, Any]:
        """What the metadata records about it."""
        told: dict[str, Any] = {"class": self.class_name, "layout": self.layout, "encoder": self.encoder}
        return {**told, "grid": self.grid or None}

    @staticmethod
    def shown(wanted: LabelRequest) -> dict[str, Any]:
        """What the picture shows, for JSON and for the picture itself."""
        return {"text": wanted.text, "labels": list(wanted.labels)}

    def check(self, text: str | None, adapter: Path | None, no_adapter: bool) -> None:
        """Raise ConfigError for options that do not go together, InputError for an empty text."""
        arguments.not_empty(text, "text")
        if not self.given:
            if text is None:
                raise ConfigError("no text", "say what the image should show, or give --class or --layout")
            if self.encoder is not None:
                raise ConfigError("--encoder needs --class, --layout or --grid", "it encodes their labels")
            return
        if self.class_name is not None and self.layout is not None:
            raise ConfigError("--class and --layout exclude each other", "a layout's boxes have labels")
        if adapter is not None or no_adapter:
            raise ConfigError(
                f"--{'no-' if no_adapter else ''}adapter cannot be used with --class, --layout and --grid",
                "an encoder uses the adapter that it was trained with; to do without, name an encoder that "
                "was trained without: --encoder DIR",
            )

    def request(self, text: str, config: Config) -> LabelRequest:
        """The checked request; errors as of ctxedit.editing.label_to_image."""
        from ctxedit.editing import label_to_image
        from ctxedit.media.layouts import read_layout

        if self.layout is not None:
            return label_to_image.layout_request(
                read_layout(self.layout), text, config, self.encoder, self.grid
            )
        return label_to_image.class_request(self.class_name, text, config, self.encoder, self.grid)


def add_to_plan(plan: dict[str, Any], wanted: LabelRequest | None) -> None:
    """Turn a plan of text to image into that of labels, if there are any."""
    if wanted is None:
        return
    plan["evaluations"] *= len(wanted.pictures)
    plan |= {"text": wanted.text, "labels": list(wanted.labels)}


def drawn(
    wanted: LabelRequest, grid: bool, config: Config, offline: bool, reporter: Reporter
) -> NDArray[uint8]:
    """The picture, or the grid."""
    from ctxedit.editing import label_to_image

    pictures = label_to_image.generate(wanted, config, offline, reporter)
    return label_to_image.grid(wanted, pictures) if grid else pictures[0]
