"""Targets that give an order are told from targets that describe, and get a fitting example."""

import re

import pytest

from ctxedit.stages.wording import GENERIC, check_describes, described

TIGER = "a tiger walking on the beach"
PETS = "a dog and a cat on the beach"
RIDER = "A young man riding a brown horse in the park."
PEOPLE = "two people are dancing in the street"
SWAN = "a black swan swims in a lake at sunset"
CAPTIONS = (TIGER, PETS, RIDER, PEOPLE, SWAN, "snow falling over a village", "dogs playing", "a cat")


@pytest.mark.parametrize(
    ("target", "caption", "meant"),
    [
        ("turn the tiger into a panda", TIGER, "a panda walking on the beach"),
        ("Please change the beach to a snowy field.", TIGER, "a tiger walking on a snowy field"),
        ("replace the tiger with a red car", TIGER, "a red car walking on the beach"),
        ("replace tiger with orange cat", TIGER, "an orange cat walking on the beach"),
        ("substitute a violin for the horse", RIDER, "a young man riding a violin in the park"),
        ("swap the cat for a rabbit", PETS, "a dog and a rabbit on the beach"),
        ("turn the people into one robot", PEOPLE, "one robot is dancing in the street"),
        ("change the background to a forest", SWAN, "a black swan swims in a forest at sunset"),
        ("change the setting to the moon", PEOPLE, "two people are dancing on the moon"),
        ("put the man in a desert", RIDER, "a young man riding a brown horse in a desert"),
        ("change the weather to rain", PEOPLE, "two people are dancing in the street in the rain"),
        ("change from day to night", SWAN, "a black swan swims in a lake at night"),
        ("make it snow", TIGER, "a tiger walking on the beach in the snow"),
        ("can you make it sunny?", TIGER, "a tiger walking on the beach on a sunny day"),
        ("make it a panda", RIDER, "a panda riding a brown horse in the park"),
        ("make the tiger into a panda", TIGER, "a panda walking on the beach"),
        ("make the tiger orange", TIGER, "an orange tiger walking on the beach"),
        ("make the horse white", RIDER, "a young man riding a white horse in the park"),
        ("change the color of the swan to pink", SWAN, "a pink swan swims in a lake at sunset"),
        ("change the color to red", TIGER, "a red tiger walking on the beach"),
        ("change its colour to pink", SWAN, "a pink swan swims in a lake at sunset"),
        ("add a hat", "...", ""),
        ("paint the dog blue", PETS, "a blue dog and a cat on the beach"),
        ("make him look old", RIDER, "an old man riding a brown horse in the park"),
        ("make the sky red", TIGER, "a tiger walking on the beach under a red sky"),
        ("make the tiger jump", TIGER, "a tiger jumping on the beach"),
        ("let the people swim", PEOPLE, "two people are swimming in the street"),
        ("make the man wear a hat", RIDER, "a young man wearing a hat riding a brown horse in the park"),
        ("turn it into a painting", PEOPLE, "a painting of two people dancing in the street"),
        ("make it look like a sketch", SWAN, "a sketch of a black swan swimming in a lake at sunset"),
        ("convert to anime style", PETS, "a dog and a cat on the beach, anime style"),
        ("make the video black and white", TIGER, "a tiger walking on the beach in black and white"),
        ("add a hat", TIGER, "a tiger with a hat walking on the beach"),
        ("add a bird in the sky", PETS, "a dog and a cat on the beach with a bird in the sky"),
        ("add a hat to the cat", PETS, "a dog and a cat with a hat on the beach"),
        ("add people in the background", TIGER, "a tiger walking on the beach with people in the background"),
        ("give the swan a crown", SWAN, "a black swan with a crown swims in a lake at sunset"),
        ("give it wings", TIGER, "a tiger with wings walking on the beach"),
        ("put sunglasses on the tiger", TIGER, "a tiger with sunglasses walking on the beach"),
        ("dress the woman in a red coat", "a woman in a dress sings", "a woman wearing a red coat sings"),
        ("remove the dog", PETS, "a cat on the beach"),
        ("delete the cat", PETS, "a dog on the beach"),
        ("without the bird", "a dog, a cat and a bird", "a dog and a cat"),
        ("remove the dog", "a dog and a cat are playing", "a cat is playing"),
        ("get rid of the horse", RIDER, "a young man in the park"),
        ("remove the beach", TIGER, "a tiger walking"),
        ("erase the tiger from the clip", TIGER, "an empty beach"),
        ("show me a dog on a boat", TIGER, "a dog on a boat"),
        ("i want an astronaut on the moon", TIGER, "an astronaut on the moon"),
    ],
)  # fmt: skip
def test_an_order_gets_the_description_it_means(target, caption, meant):
    assert described(target, caption) == meant


@pytest.mark.parametrize(
    ("target", "caption"),
    [
        ("swap the moon for a sun", TIGER),
        ("turn the dog into a cat", PETS), ("make it faster", TIGER),
        ("remove the dog", "a dog house in a garden"), ("remove the snow", "snow"),
        ("give them a hat", PEOPLE),
        ("add a hat to the dog", TIGER), ("delete everything", TIGER), ("change it", TIGER),
        ("darken the scene", TIGER), ("apply a cartoon style", TIGER), ("make it a panda", PETS),
    ],
)  # fmt: skip
def test_an_order_of_which_no_caption_can_be_made_gets_a_general_example(target, caption):
    assert described(target, caption) == ""
    with pytest.raises(Exception, match="describes the finished clip") as refused:
        check_describes(target, caption)
    assert f"“{GENERIC}”" in refused.value.hint and "-y" in refused.value.hint


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize(
    "target",
    [
        "remove the dog", "remove the tiger", "remove the people", "delete the beach", "remove the swan",
        "remove the village", "without the cat", "turn the cat into three dogs", "turn it into an orange",
        "make it night", "make it old", "add an umbrella", "add snow", "give it a hat", "put it on the moon",
        "change the street to ice", "make the dogs red", "turn the dogs into a cat", "make it a cartoon",
    ],
)  # fmt: skip
def test_no_example_is_a_fragment(target, caption):
    """It begins and ends as captions do, and has its articles right."""
    meant = described(target, caption)
    assert meant is not None
    if meant:
        assert not re.match(r"(and|with|or|in|on|of|is|are|,)\b", meant), meant
        assert not re.search(r"\b(and|with|or|in|on|of|is|are|a|an|the|,)$", meant), meant
        assert not re.search(r"\b(a|an|the) (a|an|the|and|on|in)\b|\ba [aeio]|\ban [^aeiouh]| ,|  ", meant), (
            meant
        )


@pytest.mark.parametrize(
    "target",
    [
        "a panda walking on the beach",
        "a tiger walking in the snow, watercolor style",
        "a make-up artist at work",
        "added sugar falls into a cup",
        "turning leaves in autumn",
        "the changing of the guard",
        "set of knives on a table",
        "render of a car",
        "show jumping horse",
        "turn signal blinking",
        "cut flowers in a vase",
        "paint splashes on a wall",
        "place of worship in rome",
        "drop of water",
        "give way sign",
        "a dog without a leash",
    ],
)
def test_a_description_is_left_alone(target):
    assert described(target, TIGER) is None
