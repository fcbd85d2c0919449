"""The memory that a model needs to run, estimated from its sizes.

Activations follow the formulas below, which were set against the built-in model on a CPU (8 frames at 192²,
12 at 128²) and against a Stable Diffusion 1.4 of random weights (2 and 4 frames at 512²).
"""

from __future__ import annotations

from ctxedit.config import AdapterConfig
from ctxedit.models.sizes import Sizes


def forward_bytes(a: Sizes, side: tuple[int, int], images: int, window: int, width: int) -> int:
    """Activations at the peak of one UNet pass over ``images`` images (frames × branches), no gradient.

    The skips of every level, and at the widest level 40 maps of its channels or more: the feed-forward's
    hidden halves, keys and values of ``window`` frames, convolutions' copies. Measured with two frames in
    view: 28 to 33 with Stable Diffusion 1.4, 35 to 45 with the built-in model.
    """
    return images * _widest(a, side, max(40, 24 + 8 * window)) * width + skip_bytes(a, side, images, width)


def skip_bytes(a: Sizes, side: tuple[int, int], images: int, width: int) -> int:
    """Activations that the encoder half keeps for the decoder half; a ControlNet adds as many."""
    sides = _sides(side, len(a.channels))
    return (
        images * width * sum((a.layers + 1) * c * h * w for c, (h, w) in zip(a.channels, sides, strict=True))
    )


def backward_bytes(
    a: Sizes, side: tuple[int, int], images: int, window: int, width: int, checkpointing: bool
) -> int:
    """Activations kept for the gradient, and the pass itself; checkpointing keeps only the blocks' inputs."""
    kept = 0
    for c, depth, (h, w) in zip(a.channels, a.depth, _sides(side, len(a.channels)), strict=True):
        block = (2 + depth) if checkpointing else (10 + (26 + 2 * window) * depth)
        kept += (2 * a.layers + 1) * block * c * h * w
    # The pass and its gradients; recomputing a block for them keeps more than running it (measured).
    passing = images * _widest(a, side, max(60, 24 + 8 * window)) * width + skip_bytes(a, side, images, width)
    return images * kept * width + 2 * passing


def adapter_bytes(
    config: AdapterConfig, side: tuple[int, int], images: int, gradient: bool, width: int = 4
) -> int:
    """Activations of the context adapter, ``width`` bytes a number: about 45 maps of its tokens a block."""
    tokens = -(-side[0] // config.patch) * -(-side[1] // config.patch)
    return images * tokens * config.width * 45 * (config.blocks if gradient else 1) * width


def captioner_bytes(parameters: int, width: int) -> int:
    """Weights of a captioner, and a fifth of them for what it works with.

    Measured for BLIP-2 with OPT 2.7b in bfloat16: 7.1 GiB loaded, 8.3 GiB at the peak of a beam search.
    """
    return parameters * width * 6 // 5


def encoding_bytes(a: Sizes, side: tuple[int, int], images: int, width: int) -> int:
    """Activations of encoding ``images`` frames at once.

    At full resolution a residual block holds its input, the normalised and the activated copy, and the
    convolution's own copy; the downsampler pads.
    """
    first, second = _finest(a)
    return images * _pixels(a, side) * (4 * first + 2 * second) * width


def decoding_bytes(a: Sizes, side: tuple[int, int], images: int, width: int, heap: bool = False) -> int:
    """Activations of decoding ``images`` frames at once.

    The last upsampler and the residual block behind it work at full resolution with the channels of the level
    below: input, normalised and activated copy, the convolution's own copies.

    Args:
        a: sizes of the checkpoint.
        side: (height, width) of the latents.
        images: how many frames.
        width: bytes of a number.
        heap: on a CPU, where the heap keeps what was freed (:func:`ctxedit.models.device.keep_heap`) and
            blocks of such a size do not fit into each other's gaps: a fifth more.
    """
    first, second = _finest(a)
    maps = 6 * first + 2 * second
    return images * _pixels(a, side) * (maps * 6 // 5 if heap else maps) * width


def _widest(a: Sizes, side: tuple[int, int], maps: int) -> int:
    """Numbers of ``maps`` maps at the level where they take most; 30 where a level has no attention."""
    levels = zip(a.channels, a.depth, _sides(side, len(a.channels)), strict=True)
    return max(c * h * w * (maps if depth else 30) for c, depth, (h, w) in levels)


def _finest(a: Sizes) -> tuple[int, int]:
    """Channels of the autoencoder's two finest levels."""
    return a.vae_channels[0], a.vae_channels[min(1, len(a.vae_channels) - 1)]


def _pixels(a: Sizes, side: tuple[int, int]) -> int:
    return side[0] * side[1] * a.factor**2


def upscaler_bytes(
    a: Sizes, low: tuple[int, int], frames: int, together: int, branches: int, width: int
) -> int:
    """Weights, activations of ``together`` frames, and ``frames`` frames at four times ``low`` (h, w)."""
    passing = forward_bytes(a, low, min(frames, together) * branches, 2, width)
    decoded = 1 if a.vae.parameters else min(frames, together)  # an autoencoder decodes one by one
    decoding = decoding_bytes(a, low, decoded, width)
    kept = frames * low[0] * low[1] * a.factor**2 * 3 * 3  # the frames, joined, and as the file has them
    return a.parameters * width + max(passing, decoding) + kept


def _sides(side: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    return [(-(-side[0] // 2**i), -(-side[1] // 2**i)) for i in range(levels)]
