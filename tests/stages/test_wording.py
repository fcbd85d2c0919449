"""Targets that give an order are told from targets that describe, and get a fitting example."""

import pytest

from ctxedit.stages.wording import described

CAPTION = "a tiger walking on the beach"


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("turn the tiger into a panda", "a panda walking on the beach"),
        ("Please change the beach to a snowy field.", "a tiger walking on a snowy field"),
        ("replace the tiger with a red car", "a red car walking on the beach"),
        ("make it snow", "a tiger walking on the beach, snow"),
        ("make the tiger blue", "a blue tiger walking on the beach"),
        ("make the tiger into a panda", "a panda walking on the beach"),
        ("add a hat", "a tiger walking on the beach with a hat"),
        ("remove the beach", "a tiger walking"),
        ("swap the moon for a sun", "a tiger walking on the beach, a sun"),
    ],
)
def test_an_order_gets_the_description_it_means(target, meant):
    assert described(target, CAPTION) == meant


@pytest.mark.parametrize(
    "target",
    [
        "a panda walking on the beach",
        "a tiger walking in the snow, watercolor style",
        "a make-up artist at work",
        "added sugar falls into a cup",
        "turning leaves in autumn",
        "the changing of the guard",
    ],
)
def test_a_description_is_left_alone(target):
    assert described(target, CAPTION) is None
