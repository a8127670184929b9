import json
import unicodedata

import pytest
from dmao.data import g2p
from dmao.data.labels import BLANK, BOUNDARY, Labels, Unspellable, is_noise
from dmao.data.words import WORDS
from dmao.errors import UserError

LEXICON = {"cat": ["k", "æ", "t"], "tack": ["t", "æ", "k"], "a": ["ɐ"]}
ARPABET = """AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z
ZH""".split()  # noqa: SIM905
SENTENCES = [" ".join(WORDS[i : i + 5]) for i in range(0, 300, 5)]


def english(g2p="en-us", phones=ARPABET):
    return Labels.phonemes({"all": phones, "[noise]": ["nsn"], "read": [["R", "IY", "D"], ["R", "EH", "D"]]}, g2p)


def test_characters():
    labels = Labels.characters(["cab a", "bad"])
    assert labels.tokens == ("<blank>", "|", "a", "b", "c", "d")
    assert (BLANK, BOUNDARY, len(labels), labels.boundary, labels.words) == (0, 1, 6, 1, None)
    assert labels.encode("bad cab") == [3, 2, 5, 1, 4, 2, 3]
    assert labels.decode([0, 3, 2, 5, 1, 4, 2, 3, 0]) == "bad cab"


def test_phonemes():
    labels = Labels.phonemes(LEXICON)
    assert labels.tokens == ("<blank>", "k", "k#", "t", "t#", "æ", "æ#", "ɐ", "ɐ#")
    assert labels.encode("a cat") == [8, 1, 5, 4]
    assert labels.decode([8, 0, 1, 5, 4, 0]) == "ɐ | k æ t"
    assert labels.decode([1, 5]) == "k æ"
    assert labels.spellings("tack") == [[3, 5, 2]]
    assert (labels.boundary, labels.words) == (None, ("a", "cat", "tack"))


def test_published_sizes():
    """39 phones make 79 labels; 42 phones and 3 noises, which have no form for the end of a word, make 88."""
    assert len(Labels.phonemes({"all": ARPABET})) == 79
    noises = {"[laughter]": ["lau"], "[noise]": ["nsn"], "<unk>": ["spn"]}
    switchboard = Labels.phonemes({"all": [*ARPABET, "AX", "EL", "EN"], **noises})
    assert len(switchboard) == 88
    assert [switchboard.tokens[id] for id in switchboard.encode("all [noise]")][-2:] == ["EN#", "nsn"]
    assert is_noise("[laughter]")
    assert not is_noise("all")


def test_several_pronunciations():
    labels = english()
    assert [labels.decode(ids) for ids in labels.spellings("read")] == ["R IY D", "R EH D"]
    assert labels.encode("read") == labels.spellings("read")[0]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_text(text):
    assert Labels.characters(["abc"]).encode(text) == []


def test_stray_boundaries_give_no_empty_words():
    labels = Labels.characters(["ab"])
    assert labels.decode([1, 2, 1, 1, 3, 1]) == "a b"
    assert labels.decode([]) == ""


def test_unknown_character_names_the_utterance():
    with pytest.raises(Unspellable, match=r"utterance train-7: character 'z' in 'zoo' is not among the labels"):
        Labels.characters(["abc o"]).encode("a zoo", "train-7")


def test_boundary_and_blank_cannot_be_spelled():
    labels = Labels.characters(["a|b"])
    assert labels.tokens == ("<blank>", "|", "a", "b")
    with pytest.raises(Unspellable, match=r"character '\|'"):
        labels.encode("a|b")


def test_unknown_word():
    with pytest.raises(Unspellable, match="utterance u: word 'dog' is not in the lexicon"):
        Labels.phonemes(LEXICON).encode("a dog", "u")


@pytest.mark.parametrize("entry", [[], [[]], [["k"], []]])
def test_word_without_phones(entry):
    with pytest.raises(UserError, match="word 'x' has no phones"):
        Labels.phonemes({"x": entry})


def test_composed_and_decomposed_letters_are_one():
    labels = Labels.characters([unicodedata.normalize("NFD", "řeč")])
    assert labels.tokens[2:] == ("e", "č", "ř")
    assert labels.encode(unicodedata.normalize("NFD", "řeč")) == labels.encode("řeč") == [4, 2, 3]


@pytest.mark.parametrize("labels", [Labels.characters(["ab"]), Labels.phonemes(LEXICON), english()])
def test_saved_and_read_back(labels):
    assert Labels.from_state_dict(json.loads(json.dumps(labels.state_dict()))) == labels


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"kind": "words", "tokens": ["<blank>", "|"]},
        {"kind": "characters", "tokens": ["a", "b"]},
        {"kind": "characters", "tokens": ["<blank>", "|", "a", "a"]},
        {"kind": "characters", "tokens": None},
        {"kind": "phonemes", "tokens": ["a"], "lexicon": {}, "g2p": None},
        {"kind": "bpe", "model": "AAAA"},
    ],
)
def test_damaged_state(state):
    with pytest.raises(UserError, match="label"):
        Labels.from_state_dict(state)


def test_every_english_word_gets_phones_of_the_lexicon():
    pytest.importorskip("espeakng_loader")
    labels = english()
    for word in WORDS:
        (ids,) = labels.spellings(word)
        assert labels.tokens[ids[-1]].endswith("#")
    assert labels.guessed["button"] == ("B", "AH", "T", "AH", "N")
    assert set(labels.guessed) == set(WORDS)
    assert "guessed" not in labels.state_dict()


def test_words_beyond_the_lexicon_take_its_phones_and_case():
    pytest.importorskip("espeakng_loader")
    phones = [phone.lower() for phone in [*ARPABET, "AX", "EL", "EN"]]
    switchboard = Labels.phonemes({"all": phones}, "en-us")
    assert switchboard.decode(switchboard.encode("button zebra bottle")) == "b ah t en | z iy b r ax | b aa t el"
    ipa = Labels.phonemes({"cat": ["k", "æ", "t"]}, "en-us")
    assert ipa.decode(ipa.encode("tack")) == "t æ k"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("25", "'25' is not in the lexicon and cannot be pronounced letter by letter"),
        ("[cough]", "cannot be pronounced letter by letter"),
        ("loch", "its sound 'x' has no phone there"),
        ("llanelli", "its sound 'ɬ' has no phone there"),
    ],
)
def test_what_cannot_be_pronounced_in_these_phones_is_said(word, reason):
    pytest.importorskip("espeakng_loader")
    with pytest.raises(
        Unspellable, match=f"utterance u: word {reason}" if word == "25" else reason.replace("[", r"\[")
    ):
        english().encode(f"read {word}", "u")


def test_a_word_without_sound(monkeypatch):
    monkeypatch.setattr(g2p, "_say", lambda word, voice: [])
    with pytest.raises(Unspellable, match=r"'hush' .* eSpeak NG \(en-us\) has no sound for it"):
        english().encode("hush")


@pytest.fixture(scope="module")
def pieces():
    pytest.importorskip("sentencepiece")
    return Labels.bpe(SENTENCES, 90)


def test_pieces_of_texts_there_and_back(pieces):
    assert len(pieces) == 90
    assert pieces.tokens[BLANK] == "<blank>"
    for text in (*SENTENCES, "zebra", ""):
        ids = pieces.encode(f"  {text} ")
        assert BLANK not in ids
        assert pieces.decode([0, *ids, 0]) == text


def test_pieces_of_words_are_spelled_alone_as_in_a_text(pieces):
    text = SENTENCES[0]
    assert pieces.encode(text) == [id for word in text.split() for id in pieces.spellings(word)[0]]


def test_pieces_saved_and_read_back(pieces):
    state = json.loads(json.dumps(pieces.state_dict()))
    assert Labels.from_state_dict(state) == pieces == Labels.bpe(iter(SENTENCES), 90)
    assert Labels.from_state_dict(state).tokens == pieces.tokens
    assert pieces != Labels.bpe(SENTENCES, 91)


def test_what_no_piece_has(pieces):
    with pytest.raises(Unspellable, match="utterance u: word 'žák' has a character"):
        pieces.encode("zebra žák", "u")


def test_more_pieces_than_there_are():
    pytest.importorskip("sentencepiece")
    with pytest.raises(UserError, match=r"data.bpe_size: sentencepiece cannot learn 90 pieces: .*too high"):
        Labels.bpe(["ab ba"], 90)
    with pytest.raises(UserError, match="sentencepiece cannot learn"):
        Labels.bpe([], 9)
