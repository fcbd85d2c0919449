"""Options of what a command writes, where to, and what it may do without asking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ctxedit.cli.options import option


@dataclass(frozen=True)
class OutputOptions:
    """The edited video."""

    panel: ClassVar = "Output"
    output: Annotated[
        Path | None,
        option(
            "--output",
            "-o",
            help="Output file (mp4, mov, mkv, webm, gif; for a photo png, jpg, webp), or a folder for PNG "
            "frames.",
        ),
    ] = None
    output_size: Annotated[
        Literal["working", "source"] | None,
        option(
            "--output-size",
            help="Size of the output: the working size or the source's. [default: working]",
        ),
    ] = None
    no_audio: Annotated[bool, option("--no-audio", help="Do not copy the source's sound.")] = False
    no_metadata: Annotated[
        bool,
        option("--no-metadata", help="Do not record in the files how they were made."),
    ] = False
    chroma: Annotated[
        Literal["420", "444"],
        option(
            "--chroma",
            help="H.264 chroma: 420 plays everywhere, 444 keeps odd sizes. [default: 420]",
        ),
    ] = "420"


@dataclass(frozen=True)
class RunsOptions:
    """The folder for runs."""

    panel: ClassVar = "Output"
    runs: Annotated[
        Path,
        option(
            "--runs",
            envvar="CTXEDIT_RUNS",
            metavar="DIR",
            help="Folder for runs. [default: runs]",
        ),
    ] = Path("runs")


@dataclass(frozen=True)
class OverwriteOption:
    """Permission to replace files."""

    panel: ClassVar = "Output"
    yes: Annotated[
        bool,
        option(
            "--yes",
            "-y",
            help="Proceed without asking: replace files, redo finished work, download, "
            "edit footage that the built-in models do not know.",
        ),
    ] = False


@dataclass(frozen=True)
class DownloadOption:
    """Permission to download."""

    panel: ClassVar = "Output"
    yes: Annotated[bool, option("--yes", "-y", help="Download models of more than 1 GB without asking.")] = (
        False
    )


@dataclass(frozen=True)
class DownloadOrTuneOption:
    """Permission to download, and to tune on any footage."""

    panel: ClassVar = "Output"
    yes: Annotated[
        bool,
        option(
            "--yes", "-y",
            help="Download models of more than 1 GB without asking; tune on footage that the built-in models "
            "do not know.",
        ),
    ] = False  # fmt: skip


@dataclass(frozen=True)
class RemoveOption:
    """Permission to remove."""

    panel: ClassVar = "Output"
    yes: Annotated[bool, option("--yes", "-y", help="Remove without asking.")] = False


@dataclass(frozen=True)
class DryRunOption:
    """Check without running."""

    panel: ClassVar = "Output"
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            help="Check everything and print the plan without loading or downloading models.",
        ),
    ] = False
