"""The variational bound of a pixel denoiser on images, in bits per dimension (table 6, appendix A)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctxedit.diffusion.forward import marginal
from ctxedit.diffusion.likelihood import decoder_nll, discretised_nll, level_chances, prior_kl, step_kl
from ctxedit.editing.reporter import Reporter
from ctxedit.errors import CtxeditError, InputError, OutputError
from ctxedit.files import read_json
from ctxedit.media.temporary import atomic
from ctxedit.metrics.intervals import of_mean
from ctxedit.models.pixel_denoiser import PixelDenoiser
from ctxedit.training.pixel_sources import PixelSet

Decoder = Literal["discretised", "dequantised"]
_ROWS, _KEY = "terms.jsonl", "likelihood.json"
#: Points of the curve if only a sample of the terms is computed.
_BINS = 50


@dataclass(frozen=True)
class BoundPlan:
    """What to compute.

    Attributes:
        count: number of images, the first in a random order.
        terms: terms of the sum computed for each image, 1 … T − 1; None for all. Fewer are a stratified
            sample, weighted so that the estimate of the sum is unbiased.
        decoder: ``discretised``: the probability mass of the pixel's interval; ``dequantised``: uniform noise
            is added to the pixels and the last term is a density, an upper bound of the former's.
        batch: images or terms of one pass.
        seed: of images, noise and terms.
    """

    count: int
    terms: int | None
    decoder: Decoder
    batch: int
    seed: int


@dataclass(frozen=True)
class BoundResult:
    """Bits per dimension, with the standard error over images, and the parts that it consists of.

    Attributes:
        bits, error: the bound and its standard error.
        low, high: 95 % interval.
        prior, steps, decoder: its parts.
        curve: (level, bits per dimension of its term, number of draws) for each level or bin of levels.
        images, terms: how many were used.
    """

    bits: float
    error: float
    low: float
    high: float
    prior: float
    steps: float
    decoder: float
    curve: tuple[tuple[float, float, int], ...]
    images: int
    terms: int


def measure(
    model: PixelDenoiser,
    pixels: PixelSet,
    plan: BoundPlan,
    key: dict[str, Any],
    out: Path,
    reporter: Reporter,
) -> BoundResult:
    """Compute the bound; resumes from the rows in ``out``.

    Args:
        model: its classes are looked up by name.
        pixels: images of the model's size.
        plan: how much.
        key: what identifies model and data; rows of another key are refused.
        out: folder for the finished rows.
        reporter: receives progress.

    Raises:
        InputError: a class that the model does not know, or fewer images than asked for.
        OutputError: ``out`` has rows of another model, data or plan.
    """
    if plan.count > len(pixels):
        raise InputError(
            f"{plan.count} images were requested, and there are {len(pixels)}", "choose a smaller --count"
        )
    labels = _labels(model, pixels)
    order = np.random.default_rng((plan.seed, 1)).permutation(len(pixels))[: plan.count]
    _check_usable(pixels, order)
    rows = _resume(out, {**key, **vars(plan)})
    with (
        reporter.task("likelihood", plan.count, "image") as progress,
        (out / _ROWS).open("a", encoding="utf-8") as file,
    ):
        for done in range(len(rows), plan.count):
            number = int(order[done])
            row = _image(model, pixels.read(number), labels[number], plan, done)
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
            bits = [sum(r[k] for k in ("prior", "steps", "decoder")) for r in rows]
            progress(done + 1, f"{np.mean(bits):.3f} bits per dimension")
    return _result(rows, model.config.steps)


def _check_usable(pixels: PixelSet, order: NDArray[np.int64]) -> None:
    """Raise InputError if some of the chosen images cannot be used."""
    found = {pixels.name(int(i)): why for i in order if isinstance(why := pixels.load(int(i)), str)}
    if found:
        listed = "; ".join(f"{name}: {why}" for name, why in list(found.items())[:2])
        raise InputError(
            f"{len(found)} of the {len(order)} images cannot be used ({listed})",
            "remove them: the likelihood is computed over all chosen images",
        )


def _labels(model: PixelDenoiser, pixels: PixelSet) -> NDArray[np.int64]:
    known = {name: number for number, name in enumerate(model.config.classes)}
    if strange := [name for name in pixels.names if name not in known]:
        raise InputError(
            f"the model does not know the class {strange[0]!r}", f"it knows {', '.join(model.config.classes)}"
        )
    return np.array([known[name] for name in pixels.names], np.int64)[pixels.labels]


def _resume(out: Path, key: dict[str, Any]) -> list[dict[str, Any]]:
    out.mkdir(parents=True, exist_ok=True)
    note, file = out / _KEY, out / _ROWS
    if note.is_file():
        try:
            before = read_json(note, "note")
        except CtxeditError:
            before = None
        if not isinstance(before, dict):
            raise OutputError(f"{note} is damaged: its rows are of unknown settings", "choose another --out")
        # A run on fewer images of the same order may be extended.
        if changed := sorted(k for k in key if k != "count" and before.get(k) != key[k]):
            raise OutputError(
                f"{out} has a likelihood of another {changed[0]}",
                f"{before.get(changed[0])} there, now {key[changed[0]]}: choose another --out",
            )
    with atomic(note, True) as temporary:
        temporary.write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
    rows = list(_read(file))[: key["count"]]
    with atomic(file, True) as temporary:  # without a line that was truncated when the process was killed
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def _read(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(row, dict):
            return
        yield row


@torch.no_grad()
def _image(
    model: PixelDenoiser, image: NDArray[np.uint8], label: int, plan: BoundPlan, number: int
) -> dict[str, Any]:
    """The parts of one image's bound in bits per dimension, and its terms by level."""
    generator = torch.Generator().manual_seed((plan.seed * 1_000_003 + number) % 2**63)
    device = next(model.parameters()).device
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    if plan.decoder == "dequantised":
        x0 = (pixels + torch.rand(pixels.shape, generator=generator, dtype=torch.float64)) / 128 - 1
    else:
        x0 = pixels / 127.5 - 1
    x0 = x0.float().to(device)
    steps = model.config.steps
    levels, weights = _levels(steps, plan.terms, generator)
    found = torch.cat([_terms(model, x0, label, part, generator) for part in levels.split(plan.batch)])
    prior, decoder = _ends(model, x0, label, plan, generator)
    total = (found.double() * weights).sum()
    to_bits = 1 / math.log(2)
    return {
        "prior": prior * to_bits, "steps": float(total) * to_bits, "decoder": decoder,
        "levels": levels.tolist(), "terms": [round(float(v) * to_bits, 9) for v in found],
    }  # fmt: skip


def _levels(steps: int, terms: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Levels of 2 … T and their terms' weights: all, or a stratified sample of :func:`level_chances`."""
    count = steps - 1
    if terms is None or terms >= count:
        return torch.arange(2, steps + 1), torch.ones(count, dtype=torch.float64)
    chances = level_chances(steps)
    places = (torch.arange(terms) + torch.rand(terms, generator=generator, dtype=torch.float64)) / terms
    at = torch.searchsorted(chances.cumsum(0), places).clamp(max=count - 1)
    return 2 + at, 1 / (terms * chances[at])


def _terms(
    model: PixelDenoiser, x0: Tensor, label: int, levels: Tensor, generator: torch.Generator
) -> Tensor:
    many = x0.expand(len(levels), -1, -1, -1)
    eps = torch.randn(many.shape, generator=generator).to(x0)
    labels = torch.full((len(levels),), label, device=x0.device)
    alpha, sigma = model.levels.alpha, model.levels.sigma
    shift = None if model.adapter is None else lambda x, level: model.shift(x, level, labels)
    at = levels.to(x0.device)
    return step_kl(many, eps, at, alpha, sigma, lambda x, level: model.predict(x, level, labels), shift).cpu()


def _ends(
    model: PixelDenoiser, x0: Tensor, label: int, plan: BoundPlan, generator: torch.Generator
) -> tuple[float, float]:
    """The prior's KL divergence in nats per dimension, and the last step's bits per dimension."""
    labels = torch.full((1,), label, device=x0.device)
    steps = model.config.steps
    last, first = (torch.full((1,), level, device=x0.device) for level in (steps, 1))
    a, s = model.levels.at(1)
    alpha, sigma = model.levels.at(steps)
    prior = prior_kl(x0, alpha, sigma, model.shift(x0, last, labels))
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    x1 = marginal(x0, eps, a, s, model.shift(x0, first, labels))
    mean = model.predict(x1, first, labels)
    if plan.decoder == "discretised":
        return float(prior), float(discretised_nll(x0, mean, s / a)) / math.log(2)
    # A density of values that are 1/128 apart.
    return float(prior), float(decoder_nll(x0, mean, s / a)) / math.log(2) + 7


def _result(rows: list[dict[str, Any]], steps: int) -> BoundResult:
    parts = {k: np.array([row[k] for row in rows]) for k in ("prior", "steps", "decoder")}
    bits = parts["prior"] + parts["steps"] + parts["decoder"]
    low, high = of_mean(bits) or (math.nan, math.nan)
    error = float(bits.std(ddof=1) / math.sqrt(len(bits))) if len(bits) > 1 else math.nan
    prior, between, decoder = (float(part.mean()) for part in parts.values())
    return BoundResult(
        float(bits.mean()), error, low, high, prior, between, decoder,
        _curve(rows, steps), len(rows), len(rows[0]["levels"]),
    )  # fmt: skip


def _curve(rows: list[dict[str, Any]], steps: int) -> tuple[tuple[float, float, int], ...]:
    levels = np.concatenate([row["levels"] for row in rows])
    terms = np.concatenate([row["terms"] for row in rows])
    whole = len(rows[0]["levels"]) == steps - 1
    edges = np.arange(1.5, steps + 1) if whole else np.linspace(1.5, steps + 0.5, min(_BINS, steps - 1) + 1)
    # Levels are drawn with different probabilities: within a bin, each is weighted by the inverse of its
    # density.
    weights = np.ones(len(levels)) if whole else 1 / level_chances(steps).numpy()[levels - 2]
    count, _ = np.histogram(levels, edges)
    share, _ = np.histogram(levels, edges, weights=weights)
    total, _ = np.histogram(levels, edges, weights=weights * terms)
    middles = (edges[1:] + edges[:-1]) / 2
    return tuple(
        (float(m), float(t / s), int(n)) for m, t, s, n in zip(middles, total, share, count, strict=True) if n
    )


def write(result: BoundResult, out: Path) -> dict[str, Path]:
    """Write ``likelihood.csv`` and ``likelihood.png``: the sum's terms by level."""
    from matplotlib.figure import Figure

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("level", "bits_per_dimension", "draws"))
    writer.writerows(result.curve)
    table, picture = out / "likelihood.csv", out / "likelihood.png"
    with atomic(table, True) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    levels, bits, _ = zip(*result.curve, strict=True)
    axis.semilogy(levels, np.maximum(bits, 1e-12))
    axis.set(xlabel="level t", ylabel="bits per dimension of a term", title=f"{result.bits:.3f} in all")
    axis.grid(alpha=0.3)
    with atomic(picture, True) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return {"csv": table, "png": picture}
