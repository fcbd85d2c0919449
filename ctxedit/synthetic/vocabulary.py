"""Objects, colours, backgrounds and styles of the drawn world, and the words for each.

The order of every list matters: scene seeds index into it. Only append.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """One drawable object.

    Attributes:
        name: the canonical word for it.
        emoji: its glyph in Noto Color Emoji.
        words: all words for it in captions, the canonical one first.
        verbs: what it does in captions.
        colourable: whether its main hue can be changed.
        floats: whether it can be above the ground.
    """

    name: str
    emoji: str
    words: tuple[str, ...]
    verbs: tuple[str, ...] = ("moving",)
    colourable: bool = False
    floats: bool = False


def _animal(name: str, emoji: str, *more: str) -> Thing:
    return Thing(name, emoji, (name, *more), ("walking", "running", "moving"))


def _machine(name: str, emoji: str, *more: str, colourable: bool = False) -> Thing:
    return Thing(name, emoji, (name, *more), ("driving", "moving"), colourable)


THINGS: tuple[Thing, ...] = (
    _animal("tiger", "🐅"),
    _animal("cat", "🐈", "kitten"),
    _animal("dog", "🐕", "puppy"),
    _animal("rabbit", "🐇", "bunny"),
    _animal("horse", "🐎"),
    _animal("cow", "🐄"),
    _animal("elephant", "🐘"),
    _animal("panda", "🐼"),
    _animal("lion", "🦁"),
    _animal("frog", "🐸"),
    _animal("penguin", "🐧"),
    _animal("duck", "🦆"),
    _animal("turtle", "🐢"),
    _machine("car", "🚗", colourable=True),
    _machine("bus", "🚌", colourable=True),
    _machine("tractor", "🚜"),
    _machine("train", "🚂", "locomotive"),
    Thing("rocket", "🚀", ("rocket",), ("flying", "moving"), floats=True),
    Thing("boat", "⛵", ("boat", "sailboat"), ("sailing", "moving")),
    Thing("balloon", "🎈", ("balloon",), ("floating", "flying"), True, True),
    Thing("umbrella", "☂", ("umbrella",), ("floating", "moving"), True, True),
    Thing("robot", "🤖", ("robot",), ("walking", "moving")),
    Thing("pumpkin", "🎃", ("pumpkin",), ("rolling", "moving")),
    Thing("man", "🚶", ("man", "person"), ("walking", "moving")),
    _animal("monkey", "🐒"),
    _animal("pig", "🐖", "piglet"),
    _animal("sheep", "🐑", "lamb"),
    _animal("rooster", "🐓"),
    _animal("fox", "🦊"),
    _animal("crab", "🦀"),
    _animal("dinosaur", "🦕", "dino"),
    _animal("flamingo", "🦩"),
    Thing("owl", "🦉", ("owl",), ("hopping", "moving")),
    Thing("octopus", "🐙", ("octopus",), ("swimming", "moving")),
    Thing("snowman", "⛄", ("snowman",), ("sliding", "moving")),
    Thing("ghost", "👻", ("ghost",), ("floating", "moving"), floats=True),
    Thing("dancer", "💃", ("dancer", "woman"), ("dancing", "moving")),
    _machine("scooter", "🛵", "moped", colourable=True),
    Thing("helicopter", "🚁", ("helicopter",), ("flying", "moving"), True, True),
    Thing("guitar", "🎸", ("guitar",), ("spinning", "moving"), True),
)

#: Colour name to hue in [0, 1) (HSV).
COLOURS: dict[str, float] = {"red": 0.0, "blue": 0.6, "green": 0.36, "yellow": 0.14, "purple": 0.79}

#: Background name to its phrases, the canonical one first.
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "at the beach", "on a sandy beach"),
    "forest": ("in the forest", "in the woods", "in a forest"),
    "snow": ("in the snow", "on the snow", "on a snowy hill"),
    "desert": ("in the desert", "in a desert", "on the sand dunes"),
    "city": ("in the city at night", "in a city at night", "downtown at night"),
    "meadow": ("in a meadow", "on the grass", "on a green field"),
    "sea": ("under the sea", "under water", "in the ocean"),
    "space": ("in space", "in outer space", "among the stars"),
    "mountains": ("in the mountains", "before snowy peaks", "high in the mountains"),
    "room": ("in a living room", "in a room", "at home"),
    "sky": ("above the clouds", "in the sky", "among the clouds"),
    "volcano": ("near a volcano", "before a volcano", "on black lava"),
}

#: Backgrounds in which every object can be above the ground.
GROUNDLESS = frozenset({"sea", "space", "sky"})

#: Style name to (suffixes, prefixes) in captions.
STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("",), ("", "a photo of ", "a picture of ")),
    "black and white": ((", black and white", ", black and white style"), ("a black and white photo of ",)),
    "pencil sketch": ((", pencil sketch", ", pencil sketch style"), ("a pencil sketch of ",)),
    "pixel art": ((", pixel art", ", pixel art style"), ("pixel art of ",)),
    "watercolor": ((", watercolor style", ", watercolor painting"), ("a watercolor painting of ",)),
    "neon": ((", neon lights", ", neon style"), ("a neon sign of ",)),
    "sepia": ((", sepia", ", sepia photo"), ("an old sepia photo of ",)),
}

#: Styles without colour, in which captions do not mention one.
GREY_STYLES = frozenset({"black and white", "pencil sketch", "sepia"})

BY_NAME: dict[str, Thing] = {thing.name: thing for thing in THINGS}
