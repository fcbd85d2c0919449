"""Seeded damage to a file's bytes: what disks, transfers, editors and strangers do to them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_HUGE = (
    "1e400",
    "-1e400",
    "nan",
    "-1",
    "0",
    "1e-320",
    "999999999999999999999999",
    "9223372036854775808",
    "0x7f",
)
_VALUES = (
    '"x"',
    "[]",
    "{}",
    "true",
    "null",
    "-1",
    '""',
    "[[1,2],[3]]",
    '{"a":{"a":1}}',
    "1e999",
    '"\\u0000"',
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_VALUE = re.compile(rb'(?<=[:=\[,])\s*(?:"[^"\n]*"|-?[\d.]+|true|false|null)')


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 4, 32])):
        data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.choice([0, 1, 8, rng.randrange(len(data)), len(data) // 2, len(data) - 1]) :]


def _drop(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    del data[at : at + rng.choice([1, 7, 4096])]


def _splice(data: bytearray, rng: random.Random) -> None:
    start, at, length = rng.randrange(len(data)), _at(data, rng), rng.choice([16, 512, 65536])
    data[at:at] = data[start : start + length]


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at, length = _at(data, rng), rng.choice([4, 64, 4096])
    length = min(length, len(data) - at)
    data[at : at + length] = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])


def _integer(data: bytearray, rng: random.Random) -> None:
    """A length or a count that is far too large, in either byte order."""
    size = rng.choice([2, 4, 8])
    value = rng.choice([0, 1, (1 << (8 * size)) - 1, 1 << (8 * size - 1), (1 << (8 * size - 1)) - 1])
    at = _at(data, rng)
    data[at : at + size] = value.to_bytes(size, rng.choice(["little", "big"]))


def _replace_all(data: bytearray, rng: random.Random) -> None:
    data[:] = rng.choice(
        [rng.randbytes(rng.choice([1, 100, 10_000])), b"\0" * 4096, b"<html>404</html>", b"{}"]
    )


def _number(data: bytearray, rng: random.Random) -> None:
    _substitute(data, rng, _NUMBER, rng.choice(_HUGE))


def _value(data: bytearray, rng: random.Random) -> None:
    _substitute(data, rng, _VALUE, " " + rng.choice(_VALUES))


def _nest(data: bytearray, rng: random.Random) -> None:
    depth = rng.choice([50, 2_000, 100_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}"), ("{a=", "}"), ("[", "")])
    _substitute(data, rng, _VALUE, " " + opened * depth + "1" + closed * depth)


def _line(data: bytearray, rng: random.Random) -> None:
    """A line left out, said twice, or with bytes that are no UTF-8."""
    lines = bytes(data).split(b"\n")
    at = rng.randrange(len(lines))
    lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [b"\xff\xfe" + lines[at]], [lines[at] + b"\0"]])
    data[:] = b"\n".join(lines)


def _substitute(data: bytearray, rng: random.Random, pattern: re.Pattern[bytes], text: str) -> None:
    # A binary file's text is in its header; looking through all of a large file would take the time.
    found = list(pattern.finditer(bytes(data[: 1 << 18])))
    if not found:
        _flip(data, rng)
        return
    one = rng.choice(found)
    data[one.start() : one.end()] = text.encode()


def _at(data: bytearray, rng: random.Random) -> int:
    """A position; half of them near the beginning, where headers are."""
    return rng.randrange(min(len(data), 512) if rng.random() < 0.5 else len(data))


_Mutation = Callable[[bytearray, random.Random], None]
BINARY: tuple[_Mutation, ...] = (_flip, _flip, _truncate, _drop, _splice, _overwrite, _integer, _replace_all)
TEXT: tuple[_Mutation, ...] = (
    _number,
    _number,
    _value,
    _value,
    _value,
    _nest,
    _line,
    _flip,
    _truncate,
    _replace_all,
)


def mutate(data: bytes, text: bool, rng: random.Random) -> tuple[bytes, str]:
    """Damaged bytes that differ from ``data``, and the names of what was done to them."""
    while True:
        damaged, names = bytearray(data), []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if not damaged:
                break
            # A safetensors file has JSON in front of its bytes: both sides are tried.
            one = rng.choice(TEXT if text or rng.random() < 0.25 else BINARY)
            one(damaged, rng)
            names.append(one.__name__.strip("_"))
        if damaged != data:
            return bytes(damaged), "+".join(names)
