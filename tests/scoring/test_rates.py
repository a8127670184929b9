import pytest
from dmao.scoring import ErrorCount, cer, wer


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("a b c", "a b c", (0, 0, 0, 3)),
        ("a b c", "a x c", (1, 0, 0, 3)),
        ("a b c", "a c", (0, 0, 1, 3)),
        ("a b c", "a b b c", (0, 1, 0, 3)),
        ("a b", "", (0, 0, 2, 2)),
        ("", "a b", (0, 2, 0, 0)),
        ("", "", (0, 0, 0, 0)),
        ("  a   b ", "a b", (0, 0, 0, 2)),
    ],
)
def test_word_errors(reference, hypothesis, counts):
    assert wer([reference], [hypothesis]) == ErrorCount(*counts)


def test_character_errors_count_blanks():
    assert cer(["ab c"], ["abc"]) == ErrorCount(0, 0, 1, 4)
    assert cer(["řeč"], ["r\u030cec\u030c"]).errors == 0


def test_counts_add_up_over_utterances():
    found = wer(["a b", "c", ""], ["a", "d", "e"])
    assert found == ErrorCount(substitutions=1, insertions=1, deletions=1, reference=3)
    assert found.percent == 100
    assert str(found) == "100.00 % (1 sub, 1 ins, 1 del in 3)"


def test_without_references():
    assert wer([], []).percent == 0
    assert wer([""], ["a b"]).percent == 200


def test_numbers_of_texts_must_agree():
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        wer(["a", "b"], ["a"])
