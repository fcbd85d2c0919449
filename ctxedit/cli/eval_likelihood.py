"""``ctxedit eval likelihood``: the variational bound of a pixel denoiser, in bits per dimension."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ctxedit.cli.failures import resumable
from ctxedit.cli.options import MessageOptions
from ctxedit.cli.output import Screen, print_table
from ctxedit.errors import ConfigError

if TYPE_CHECKING:
    from ctxedit.bench.likelihood import BoundResult

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Folder that `ctxedit train cifar10-plain` wrote.", show_default=False
    ),
]
Images = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="CIFAR-10's binary archive or its folder, shards with classes, or a folder of images.",
        show_default=False,
    ),
]
Split = Annotated[Literal["train", "test"], typer.Option("--split", help="Split to use, if DATA has both.")]
Count = Annotated[int, typer.Option("--count", min=2, help="Images.")]
Terms = Annotated[
    str, typer.Option("--terms", metavar="N|all", help="Terms of the bound to compute for each image.")
]
DecoderKind = Annotated[
    Literal["discretised", "dequantised"],
    typer.Option("--decoder", help="Last term: discretised (of pixel values) or dequantised (a density)."),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Terms computed in one network pass.")]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed for choosing images and terms, and for the noise.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder for the results. [default: likelihood-MODEL]", show_default=False
    ),
]


def likelihood(
    model: Model,
    data: Images,
    messages: MessageOptions,
    split: Split = "test",
    count: Count = 200,
    terms: Terms = "50",
    decoder: DecoderKind = "discretised",
    batch: Batch = 50,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Compute the variational bound of images in bits per dimension, with its standard error.

    The bound is the sum of the prior's KL divergence, that of each step and the last step's term. With
    --terms N a random sample of the steps is computed for each image, and the standard error includes the
    sampling error. likelihood.csv and likelihood.png show the terms by noise level. Run the same command
    again to resume.
    """
    screen = Screen(messages.quiet, messages.json)
    number = None if terms == "all" else int(terms) if terms.isdecimal() else 0
    if number is not None and number < 1:
        raise ConfigError(f"--terms {terms}", "a number of 1 or more, or all")

    from ctxedit.bench import likelihood as bounds
    from ctxedit.cli.progress import teller
    from ctxedit.media.temporary import check_writable
    from ctxedit.models.device import pick_device
    from ctxedit.models.pixel_denoiser import load_pixels
    from ctxedit.training.components import hashes
    from ctxedit.training.pixel_sources import open_pixels
    from ctxedit.training.tasks.pixel_denoiser import PixelDenoiserTask

    reporter = teller(screen)
    folder = model if (model / "pixels.json").is_file() else model / PixelDenoiserTask.folder
    network = load_pixels(folder, pick_device(device))
    pixels = open_pixels(data, network.config.size, split)
    if not pixels.lossless:
        reporter.warn(
            "these images are JPEG or WebP: figures are not comparable with those of lossless images"
        )
    if pixels.bad:
        listed = ", ".join(f"{name} ({why})" for name, why in list(pixels.bad.items())[:3])
        reporter.warn(f"{len(pixels.bad)} left out of the data: {listed}")
    out = out or Path(f"likelihood-{model.name}")
    check_writable(out / ".ctxedit", True)
    plan = bounds.BoundPlan(count, number, decoder, batch, seed)
    key = {"model": hashes(folder), "data": f"{data.name}, {split}, {len(pixels)} images"}
    with resumable(out):
        found = bounds.measure(network, pixels, plan, key, out, reporter)
        files = bounds.write(found, out)
    _show(screen, found, files, pixels.lossless)


def _show(screen: Screen, found: BoundResult, files: dict[str, Path], lossless: bool) -> None:
    if screen.json:
        screen.result("", {**dataclasses.asdict(found), **files, "lossless": lossless})
        return
    interval = f"{found.low:.4f} to {found.high:.4f}"
    cells = [
        ("bits per dimension", f"{found.bits:.4f}"), ("standard error", f"{found.error:.4f}"),
        ("95 % interval", interval), ("prior", f"{found.prior:.5f}"), ("steps", f"{found.steps:.4f}"),
        ("decoder", f"{found.decoder:.4f}"), ("images", str(found.images)), ("terms", str(found.terms)),
    ]  # fmt: skip
    print_table(list(zip(*cells, strict=True)))
    screen.say(f"{files['csv']}, {files['png']}")
