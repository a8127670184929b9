import json
import unicodedata

import pytest
from dmao.data.labels import BLANK, BOUNDARY, Labels
from dmao.errors import UserError

LEXICON = {"cat": ["k", "æ", "t"], "tack": ["t", "æ", "k"], "a": ["ɐ"]}


def test_characters():
    labels = Labels.characters(["cab a", "bad"])
    assert labels.tokens == ("<blank>", "|", "a", "b", "c", "d")
    assert (BLANK, BOUNDARY, len(labels)) == (0, 1, 6)
    assert labels.encode("bad cab") == [3, 2, 5, 1, 4, 2, 3]
    assert labels.decode([0, 3, 2, 5, 1, 4, 2, 3, 0]) == "bad cab"


def test_phonemes():
    labels = Labels.phonemes(LEXICON)
    assert labels.tokens == ("<blank>", "|", "k", "t", "æ", "ɐ")
    assert labels.encode("a cat") == [5, 1, 2, 4, 3]
    assert labels.decode([5, 1, 2, 4, 3]) == "ɐ | k æ t"
    assert labels.spell("tack") == ["t", "æ", "k"]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_text(text):
    assert Labels.characters(["abc"]).encode(text) == []


def test_stray_boundaries_give_no_empty_words():
    labels = Labels.characters(["ab"])
    assert labels.decode([1, 2, 1, 1, 3, 1]) == "a b"
    assert labels.decode([]) == ""


def test_unknown_character_names_the_utterance():
    with pytest.raises(UserError, match=r"utterance train-7: character 'z' in 'zoo' is not among the labels"):
        Labels.characters(["abc o"]).encode("a zoo", "train-7")


def test_boundary_and_blank_cannot_be_spelled():
    labels = Labels.characters(["a|b"])
    assert labels.tokens == ("<blank>", "|", "a", "b")
    with pytest.raises(UserError, match=r"character '\|'"):
        labels.encode("a|b")


def test_unknown_word():
    with pytest.raises(UserError, match="utterance u: word 'dog' is not in the lexicon"):
        Labels.phonemes(LEXICON).encode("a dog", "u")


def test_composed_and_decomposed_letters_are_one():
    labels = Labels.characters([unicodedata.normalize("NFD", "řeč")])
    assert labels.tokens[2:] == ("e", "č", "ř")
    assert labels.encode(unicodedata.normalize("NFD", "řeč")) == labels.encode("řeč") == [4, 2, 3]


@pytest.mark.parametrize("labels", [Labels.characters(["ab"]), Labels.phonemes(LEXICON)])
def test_saved_and_read_back(labels):
    assert Labels.from_state_dict(json.loads(json.dumps(labels.state_dict()))) == labels


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"kind": "words", "tokens": ["<blank>", "|"], "lexicon": {}},
        {"kind": "characters", "tokens": ["a", "b"], "lexicon": {}},
        {"kind": "characters", "tokens": ["<blank>", "|", "a", "a"], "lexicon": {}},
        {"kind": "characters", "tokens": None, "lexicon": {}},
    ],
)
def test_damaged_state(state):
    with pytest.raises(UserError, match="label"):
        Labels.from_state_dict(state)
