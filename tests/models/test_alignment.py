"""Which target word takes which source word's attention, on word lists."""

import itertools

import pytest
import torch

from ctxedit.errors import ConfigError
from ctxedit.models.alignment import align, changed, columns, equaliser
from ctxedit.models.backbones import Word

LENGTH = 16


def words(text):
    """Words of a prompt; ``tiger*3`` is a word of three tokens."""
    found, at = [], 1
    for item in text.split():
        name, _, count = item.partition("*")
        count = int(count or 1)
        found.append(Word(name, tuple(range(at, at + count))))
        at += count
    return found


def texts(found):
    return [w.text for w in found]


def longest_common(a, b):
    """Length of the longest common subsequence, by trying every subsequence."""
    return next(
        n
        for n in range(min(len(a), len(b)), -1, -1)
        if set(itertools.combinations(a, n)) & set(itertools.combinations(b, n))
    )


def content(mapper, old, new):
    return mapper[1 : old[-1].tokens[-1] + 1, 1 : new[-1].tokens[-1] + 1]


class TestReplace:
    def test_word_by_word(self):
        old, new = words("a tiger walking"), words("a panda sleeping")
        how = align(old, new, LENGTH, "replace")
        assert torch.equal(how.mapper, torch.eye(LENGTH))
        assert torch.equal(how.share, torch.ones(LENGTH))
        assert torch.equal(how.weight, torch.ones(LENGTH))

    def test_other_token_counts_spread_evenly(self):
        old, new = words("a cat*2 on sand"), words("a rhinoceros*3 on sand")
        mapper = align(old, new, LENGTH, "replace").mapper
        want = torch.tensor(
            [
                [1, 0, 0, 0, 0, 0],
                [0, 1 / 3, 1 / 3, 1 / 3, 0, 0],
                [0, 1 / 3, 1 / 3, 1 / 3, 0, 0],
                [0, 0, 0, 0, 1, 0],
                [0, 0, 0, 0, 0, 1],
            ]
        )
        torch.testing.assert_close(content(mapper, old, new), want)

    def test_equal_token_counts_go_in_order(self):
        old, new = words("cat*3"), words("dog*3")
        assert torch.equal(content(align(old, new, LENGTH).mapper, old, new), torch.eye(3))

    def test_differing_counts_are_refused(self):
        with pytest.raises(ConfigError, match="2 and 3"):
            align(words("a tiger"), words("a big tiger"), LENGTH, "replace")

    def test_auto_replaces_where_counts_agree(self):
        old, new = words("a tiger here"), words("a panda*2 there")
        auto, replace = (align(old, new, LENGTH, how) for how in ("auto", "replace"))
        assert torch.equal(auto.mapper, replace.mapper)
        assert torch.equal(auto.share, torch.ones(LENGTH))


class TestRefine:
    def test_new_words_keep_their_own(self):
        old, new = words("a tiger on sand"), words("a watercolor*2 tiger on sand")
        how = align(old, new, LENGTH)  # auto: counts differ
        # start a w w tiger on sand end …
        assert how.share[:7].tolist() == [1, 1, 0, 0, 1, 1, 1]
        assert (how.share[7:] == 1).all()
        assert not how.mapper[:, 2:4].any()
        for source, target in ((1, 1), (2, 4), (3, 5), (4, 6)):
            assert how.mapper[source, target] == 1

    def test_words_left_out_give_their_attention_to_none(self):
        old, new = words("a big tiger"), words("a tiger")
        how = align(old, new, LENGTH)
        assert not how.mapper[2].any()
        assert how.mapper[3, 2] == 1
        assert (how.share == 1).all()

    def test_refine_where_counts_agree_leaves_changed_words_alone(self):
        old, new = words("a tiger on sand"), words("a panda on sand")
        how = align(old, new, LENGTH, "refine")
        assert how.share[:5].tolist() == [1, 1, 0, 1, 1]

    def test_content_words_before_function_words(self):
        old, new = words("a tiger"), words("the tiger with a hat")
        assert align(old, new, LENGTH, "refine").mapper[2, 2] == 1

    def test_case_does_not_matter(self):
        assert (align(words("A Tiger"), words("a big tiger"), LENGTH).share[[1, 3]] == 1).all()

    def test_repeated_words_are_taken_once_and_in_order(self):
        old, new = words("the cat and the dog"), words("the cat and the big dog")
        mapper = content(align(old, new, LENGTH, "refine").mapper, old, new)
        assert mapper.nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [4, 5]]

    @pytest.mark.parametrize(
        "old, new",
        [
            ("p q r x y", "x y p s q s r"),  # the longest block is not in the longest subsequence
            ("a b c d e f", "f a e b d c"),
            ("red fox on blue sea", "blue fox on red sea"),
            ("p q", "r s t"),
            ("a a b a", "b a a"),
        ],
    )
    def test_as_many_words_as_the_longest_common_subsequence(self, old, new):
        old, new = words(old), words(new)
        mapper = content(align(old, new, LENGTH, "refine").mapper, old, new)
        pairs = mapper.nonzero().tolist()
        assert len(pairs) == longest_common(texts(old), texts(new))
        assert pairs == sorted(pairs)
        assert all(b > a for (_, a), (_, b) in itertools.pairwise(pairs))
        assert all(old[i].text == new[j].text for i, j in pairs)


@pytest.mark.parametrize("how", ["auto", "refine"])
@pytest.mark.parametrize(
    "old, new",
    [
        ("a tiger here", "a panda here"),
        ("a tiger*3 here", "a panda here"),
        ("a tiger here", "a panda*4 here"),
        ("a tiger*5", "a very big*2 old tiger*5 sleeping*3"),
        ("a very big*2 old tiger*5 sleeping*3", "a tiger*5"),
        ("x", "y*14"),
        ("y*14", "x"),
        ("x*14", "y*13"),
    ],
)
def test_attention_mass(old, new, how):
    old, new = words(old), words(new)
    result = align(old, new, LENGTH, how)
    mapper, share = result.mapper, result.share
    assert (mapper >= 0).all()
    rows = mapper.sum(1)
    # No source token's attention is counted twice, and none of it lands on a word that keeps its own.
    assert rows.max() <= 1 + 1e-6
    assert not mapper[:, share == 0].any()
    # Start, end and padding hand over all of theirs.
    ends = [found[-1].tokens[-1] + 1 for found in (old, new)]
    torch.testing.assert_close(rows[[0, *range(ends[0], LENGTH)]], torch.ones(1 + LENGTH - ends[0]))
    assert mapper[0].nonzero().tolist() == [[0]]
    assert not mapper[ends[0] :, : ends[1]].any()
    assert (mapper[:, share == 1].sum(0) > 0).all()
    if how == "auto" and len(old) == len(new):
        # A replacement conserves mass: any map's row, times the mapper, still sums to 1.
        maps = torch.softmax(torch.randn(5, LENGTH, generator=torch.Generator().manual_seed(0)), -1)
        torch.testing.assert_close((maps @ mapper).sum(-1), torch.ones(5))
        torch.testing.assert_close(rows, torch.ones(LENGTH))


def test_a_prompt_with_itself_is_the_identity():
    both = words("a tiger*3 on the beach")
    for how in ("auto", "replace", "refine"):
        result = align(both, both, LENGTH, how)
        assert torch.equal(result.mapper, torch.eye(LENGTH))
        assert torch.equal(result.share, torch.ones(LENGTH))


def test_empty_prompts():
    result = align([], words("a tiger"), LENGTH)
    assert result.share.tolist() == [1, 0, 0] + [1] * (LENGTH - 3)
    torch.testing.assert_close(result.mapper.sum(1), torch.ones(LENGTH))
    assert torch.equal(align([], [], LENGTH).mapper, torch.eye(LENGTH))


class TestEqualiser:
    def test_weights_all_tokens_of_every_such_word(self):
        weight = equaliser(words("a Cat*2 and a cat*2"), LENGTH, {"CAT": 3.0, "and": 0.5})
        assert weight.tolist() == [1, 1, 3, 3, 0.5, 1, 3, 3] + [1] * (LENGTH - 8)

    def test_an_absent_word_is_refused(self):
        with pytest.raises(ConfigError, match="'dog'"):
            equaliser(words("a cat"), LENGTH, {"dog": 2.0})
        with pytest.raises(ConfigError, match="'ca'"):
            align(words("a cat"), words("a cat"), LENGTH, weights={"ca": 2.0})


class TestChanged:
    @pytest.mark.parametrize(
        "old, new, only_old, only_new",
        [
            ("a tiger on the beach", "a panda on the beach", ["tiger"], ["panda"]),
            ("a tiger on the beach", "a tiger in the snow", ["beach"], ["snow"]),
            ("a tiger", "the tiger with a hat", [], ["hat"]),
            ("a tiger , sleeping", "a tiger . !", ["sleeping"], []),
            ("a tiger", "a tiger in watercolor style", [], ["watercolor"]),
            ("a tiger", "A Tiger", [], []),
            ("red fox", "blue fox", ["red"], ["blue"]),
        ],
    )
    def test_content_words_only(self, old, new, only_old, only_new):
        before, after = changed(words(old), words(new))
        assert (texts(before), texts(after)) == (only_old, only_new)

    def test_of_a_repeated_word_the_added_one_is_meant(self):
        old, new = words("a cat"), words("a cat and another cat")
        assert [w.tokens for w in changed(old, new)[1]] == [(4,), (5,)]


def test_columns_are_one_hot_sums():
    tiger, sand = Word("tiger", (2, 3)), Word("sand", (5,))
    got = columns([tiger, sand], 7)
    assert got.T.tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]]
    assert columns([], 7).shape == (7, 0)
