"""Object sprites, rendered from the Noto Color Emoji font and shipped as PNG.

``python -m ctxedit.synthetic.sprites`` renders them again (Debian: ``fonts-noto-color-emoji``).
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ctxedit.synthetic.vocabulary import COLOURS, THINGS

FOLDER = Path(__file__).parent / "sprites"
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_SIDE = 96
_BITMAP_SIZE = 109  # the one size that the font's bitmaps come in


def bake(font: Path = FONT, folder: Path = FOLDER) -> None:
    """Render every glyph, cropped to its ink, into a 96×96 square with a margin of one pixel."""
    folder.mkdir(exist_ok=True)
    face = ImageFont.truetype(str(font), _BITMAP_SIZE)
    for thing in THINGS:
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((8, 8), thing.emoji, font=face, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        scale = (_SIDE - 2) / max(glyph.size)
        glyph = glyph.resize([max(1, round(s * scale)) for s in glyph.size], Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (_SIDE, _SIDE))
        # Aligned with the lower edge, so that feet and wheels touch the ground.
        square.alpha_composite(glyph, ((_SIDE - glyph.width) // 2, _SIDE - 1 - glyph.height))
        square.save(folder / f"{thing.name}.png", optimize=True)


@lru_cache(maxsize=512)
def sprite(name: str, colour: str | None, side: int) -> Image.Image:
    """The sprite as premultiplied RGBA (mode ``RGBa``), ``side``×``side`` pixels.

    Args:
        name: a name of :data:`~ctxedit.synthetic.vocabulary.THINGS`.
        colour: a key of ``COLOURS``, or None for the glyph's own colour.
        side: pixels.
    """
    # Averaged when it shrinks; when it grows, averaging would repeat pixels and leave jagged outlines.
    method = Image.Resampling.BOX if side <= _SIDE else Image.Resampling.BICUBIC
    return _glyph(name, colour).resize((side, side), method)


@lru_cache(maxsize=512)
def _glyph(name: str, colour: str | None) -> Image.Image:
    image = Image.open(FOLDER / f"{name}.png").convert("RGBA")
    if colour is not None:
        image = _recolour(image, COLOURS[colour])
    return image.convert("RGBa")


def _recolour(image: Image.Image, hue: float) -> Image.Image:
    """Give every saturated pixel the same hue; greys, glass and shadows are unchanged."""
    alpha = image.getchannel("A")
    hsv = np.asarray(image.convert("RGB").convert("HSV")).copy()
    strong = hsv[..., 1] > 70
    hsv[..., 0][strong] = round(hue * 255)
    # Without more saturation, glyphs of a light hue such as the umbrella would look pastel.
    hsv[..., 1][strong] = np.maximum(hsv[..., 1][strong], 190)
    hsv[..., 2][strong] = np.maximum(hsv[..., 2][strong], 150)
    out = Image.fromarray(hsv, "HSV").convert("RGB")
    out.putalpha(alpha)
    return out


if __name__ == "__main__":
    bake(Path(sys.argv[1]) if len(sys.argv) > 1 else FONT)
