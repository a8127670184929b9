import itertools
import sys

import numpy as np
import pytest
import torch
from dmao.data.labels import BLANK, BOUNDARY, Labels
from dmao.decode import LexiconDecoder, PrefixDecoder, Scales, greedy, mean_posterior, write_arpa
from dmao.errors import UserError
from dmao.scoring import wer

pytest.importorskip("flashlight.lib.text")

WORDS = ("a", "ab", "abba", "bee", "cab", "see", "seed")
LABELS = Labels.characters(WORDS)
PHONEMES = Labels.phonemes({"cat": ["k", "æ", "t"], "tack": ["t", "æ", "k"], "at": ["æ", "t"], "a": ["ɐ"]})


def log_probs(frames, labels, confidence=8.0, noise=0.0, seed=0):
    """Log-probabilities whose best path is `frames` while there is no noise."""
    logits = np.random.default_rng(seed).normal(0, max(noise, 1e-9), (len(frames), len(labels)))
    logits[np.arange(len(frames)), frames] += confidence
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def alignment(ids, repeat=1, gap=1):
    """`repeat` frames per label with `gap` blanks between; at least one between equal labels."""
    frames = []
    for position, label in enumerate(ids):
        equal = position > 0 and ids[position - 1] == label
        frames += [BLANK] * max(gap, int(equal)) + [label] * repeat
    return frames


@pytest.mark.parametrize("repeat", [1, 2, 5])
@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("text", ["abba", "see bee", "a a cab ab", "seed see seed"])
def test_perfect_log_probs_give_the_text(text, repeat, gap):
    frames = log_probs(alignment(LABELS.encode(text), repeat, gap), LABELS)
    assert greedy(frames, LABELS) == text
    decoded = LexiconDecoder(LABELS, WORDS).decode(frames)
    assert decoded == text
    assert wer([text], [decoded]).percent == 0


@pytest.mark.parametrize("repeat", [1, 3])
def test_perfect_log_probs_over_phonemes(repeat):
    text = "a cat at tack"
    frames = log_probs(alignment(PHONEMES.encode(text), repeat), PHONEMES)
    assert LexiconDecoder(PHONEMES, PHONEMES.lexicon).decode(frames) == text
    assert greedy(frames, PHONEMES) == PrefixDecoder(PHONEMES).decode(frames) == "ɐ | k æ t | æ t | t æ k"


@pytest.mark.parametrize("gap", [0, 2])
def test_perfect_log_probs_over_pieces(gap):
    pytest.importorskip("sentencepiece")
    labels, text = Labels.bpe(["cab see abba", "bee seed a ab"] * 3, 14), "see a cab abba a a seed"
    frames = log_probs(alignment(labels.encode(text), 2, gap), labels)
    assert LexiconDecoder(labels, WORDS).decode(frames) == greedy(frames, labels) == text
    assert PrefixDecoder(labels).decode(frames) == text


def test_the_lexicon_mends_what_greedy_gets_wrong():
    text = "cab see abba"
    frames = log_probs(alignment(LABELS.encode(text), 3), LABELS, confidence=4, noise=2)
    assert greedy(frames, LABELS) != text
    assert LexiconDecoder(LABELS, WORDS).decode(frames) == text


def test_only_words_of_the_vocabulary_come_out():
    decoder = LexiconDecoder(LABELS, ["cab", "see"])
    for seed in range(5):
        frames = log_probs([0] * 30, LABELS, confidence=0, noise=3, seed=seed)
        assert set(decoder.decode(frames).split()) <= {"cab", "see"}


@pytest.mark.parametrize("seed", range(20))
def test_best_word_by_enumeration(seed):
    """Against the CTC loss, which sums over all paths: five frames hold one word of three letters, no two.

    The decoder takes boundaries around a word for silence, the loss does not; here they are out of the question.
    """
    frames = torch.from_numpy(log_probs([BLANK] * 5, LABELS, confidence=0, noise=2, seed=seed))
    frames[:, BOUNDARY] = -30
    words = ["cab", "bee", "see", "bac", "aba"]

    def loss(word):
        target = torch.tensor([LABELS.encode(word)])
        return torch.nn.functional.ctc_loss(frames[:, None], target, [5], [3], reduction="sum").item()

    decoder = LexiconDecoder(LABELS, words, scales=Scales(word=40.0))  # so that a word beats silence
    assert decoder.decode(frames) == min(words, key=loss)


SHORT = {"ba": ["b", "a"], "a": ["a"], "ab": ["a", "b"], "bab": ["b", "a", "b"], "b": ["b"]}


@pytest.mark.parametrize("seed", range(40))
def test_best_words_by_enumeration(seed):
    """Against the CTC loss, over all texts of at most two words: without a boundary, too, every path counts once.

    Blanks are unlikely, so that repeated frames at a word's end matter.
    """
    labels = Labels.phonemes(SHORT)
    frames = log_probs([BLANK] * 5, labels, confidence=-2, noise=2, seed=seed)
    texts = [*SHORT, *(f"{a} {b}" for a in SHORT for b in SHORT)]

    def loss(text):
        target = torch.tensor([labels.encode(text)])
        arguments = torch.from_numpy(frames)[:, None], target, [5], [target.shape[1]]
        return torch.nn.functional.ctc_loss(*arguments, reduction="sum").item()

    two = {text for text in texts if " " in text}
    for score, best in ((-40.0, min(set(texts) - two, key=loss)), (0.0, None)):
        decoded = LexiconDecoder(labels, SHORT, scales=Scales(word=score)).decode(frames)
        if best is not None:
            assert decoded in (best, "")
        elif decoded in texts:
            assert loss(decoded) <= min(map(loss, texts)) + 0.3  # a beam keeps no path that the gates of twins close


def test_frames_of_one_label_are_one_word_however_welcome_words_are():
    labels = Labels.phonemes(SHORT)
    frames = log_probs([labels.encode("ba")[0], *[labels.encode("ba")[1]] * 4], labels, confidence=20)
    for scales in (Scales(word=0.0), Scales(word=5.0)):
        assert LexiconDecoder(labels, SHORT, scales=scales).decode(frames) == "ba"
    for repeat in (1, 2):  # a blank parts words, however unwelcome these are
        parted = log_probs(alignment(labels.encode("ba a a"), repeat, 1), labels)
        for scales in (Scales(word=0.0), Scales(word=-3.0)):
            assert LexiconDecoder(labels, SHORT, scales=scales).decode(parted) == "ba a a"


def test_prior_takes_from_labels_what_they_have_anyway():
    """ "see" and "bee" are as likely to hear; the model says "b" more often than it should."""
    see, bee = LABELS.encode("see"), LABELS.encode("bee")
    frames = log_probs(alignment(see), LABELS)
    position = frames.argmax(1).tolist().index(see[0])
    frames[position, bee[0]] = frames[position, see[0]] + 0.1
    prior = np.full(len(LABELS), 0.1)
    prior[bee[0]] = 0.4
    decoder = LexiconDecoder(LABELS, WORDS, prior=prior, scales=Scales(prior=0.0))
    assert decoder.decode(frames) == "bee"
    decoder.rescale(Scales(prior=0.3))
    assert decoder.decode(frames) == "see"
    assert PrefixDecoder(LABELS, prior=prior, prior_scale=0.3).decode(frames) == "see"
    with pytest.raises(ValueError, match=r"prior must be positive \[8\], got \[3\]"):
        LexiconDecoder(LABELS, WORDS, prior=np.ones(3))


@pytest.mark.parametrize("seed", range(10))
def test_prefixes_by_enumeration(seed):
    """The sequence with the least CTC loss of all those of four frames, where the best path may say something else."""
    labels = Labels.characters(["ab"])
    frames = log_probs([BLANK] * 4, labels, confidence=0, noise=1.5, seed=seed)
    sequences = [s for length in range(5) for s in itertools.product(range(1, len(labels)), repeat=length)]

    def loss(sequence):
        target = torch.tensor([sequence], dtype=torch.int64).view(1, -1)
        arguments = torch.from_numpy(frames)[:, None], target, [4], [len(sequence)]
        return torch.nn.functional.ctc_loss(*arguments, reduction="sum").item()

    assert PrefixDecoder(labels).decode(frames) == labels.decode(min(sequences, key=loss))


def test_mean_posterior():
    outputs = [np.log(np.array([[0.5, 0.5, 0.0 + 1e-30]])), np.log(np.array([[0.2, 0.4, 0.4], [0.1, 0.6, 0.3]]))]
    assert mean_posterior(outputs) == pytest.approx([0.8 / 3, 1.5 / 3, 0.7 / 3])
    assert (mean_posterior([np.log(np.array([[1.0, 1e-300]]))]) > 0).all()
    with pytest.raises(ValueError, match="no frame"):
        mean_posterior([np.zeros((0, 3))])


def test_pronunciations_of_a_word_and_words_that_sound_alike(caplog):
    labels = Labels.phonemes({"read": [["r", "i", "d"], ["r", "e", "d"]], **{f"w{i}": ["r", "i"] for i in range(8)}})
    decoder = LexiconDecoder(labels, labels.words)
    for spelling in labels.spellings("read"):
        assert decoder.decode(log_probs(alignment(spelling), labels)) == "read"
    assert decoder.decode(log_probs(alignment(labels.encode("w3")), labels)) == "w0"
    said = "7 pronunciations are those of 1 other words, which only a language model tells apart, and are left out: w1,"
    assert said in caplog.text


def test_a_model_tells_words_that_sound_alike_apart(caplog, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    labels = Labels.phonemes({f"w{i}": ["r", "i"] for i in range(8)})
    arpa = tmp_path / "model.arpa"
    write_arpa([*["w0", "w1", "w2", "w3"] * 2, "w5"], arpa, order=2)
    frames = log_probs(alignment(labels.encode("w5")), labels)
    decoder = LexiconDecoder(labels, labels.words, arpa=arpa)
    assert decoder.decode(frames) == "w0"  # the first one of those that are equally likely
    assert "2 pronunciations are those of 6 other words and are left out: w6, w7" in caplog.text
    write_arpa([*["w0", "w1", "w2", "w3"], *["w5"] * 3], arpa, order=2)
    assert LexiconDecoder(labels, labels.words, arpa=arpa).decode(frames) == "w5"


def test_equal_frames_are_equal_words():
    """More hypotheses than are kept: which of them are must not depend on where they lie in memory."""
    labels = Labels.phonemes({f"w{i}": [f"p{i % 5}", f"p{i // 5}"][: 1 + i % 2] for i in range(25)})
    kept, found = [], []
    for attempt in range(8):
        frames = log_probs([BLANK] * 40, labels, confidence=0, noise=0.2, seed=3)
        found.append(LexiconDecoder(labels, labels.words).decode(frames))
        kept += [bytearray(97 * attempt + 13 * place) for place in range(2000)][::2]
    assert len(set(found)) == 1


def test_no_frames_and_silence():
    decoder = LexiconDecoder(LABELS, WORDS)
    empty = np.zeros((0, len(LABELS)))
    assert decoder.decode(empty) == greedy(empty, LABELS) == ""
    silence = log_probs([BLANK] * 9, LABELS)
    assert decoder.decode(silence) == greedy(silence, LABELS) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_of_any_type(dtype):
    frames = torch.from_numpy(log_probs(alignment(LABELS.encode("cab bee")), LABELS)).to(dtype).requires_grad_()
    assert LexiconDecoder(LABELS, WORDS).decode(frames) == greedy(frames, LABELS) == "cab bee"


def test_rows_in_any_memory_order():
    frames = np.asfortranarray(log_probs(alignment(LABELS.encode("cab bee")), LABELS))
    assert LexiconDecoder(LABELS, WORDS).decode(frames) == "cab bee"


@pytest.mark.parametrize("shape", [(5,), (5, 3), (1, 5, len(LABELS))])
def test_shape_is_checked(shape):
    for decode in (LexiconDecoder(LABELS, WORDS).decode, lambda x: greedy(x, LABELS)):
        with pytest.raises(ValueError, match=rf"log_probs must be \[T, {len(LABELS)}\], got"):
            decode(np.zeros(shape))


def test_nan_is_an_error():
    frames = log_probs([0, 2, 0], LABELS)
    frames[1, 1] = float("nan")
    for decode in (LexiconDecoder(LABELS, WORDS).decode, lambda x: greedy(x, LABELS)):
        with pytest.raises(ValueError, match="holds NaN"):
            decode(frames)


def test_vocabulary_is_checked(caplog):
    with pytest.raises(UserError, match="at least one word"):
        LexiconDecoder(LABELS, [])
    with pytest.raises(UserError, match="at least one word that the labels can spell, got zoo"):
        LexiconDecoder(LABELS, ["zoo"])
    LexiconDecoder(LABELS, ["zoo", "cab"])
    assert "1 words that the labels cannot spell are left out: zoo" in caplog.text


def test_missing_flashlight_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(UserError, match="needs flashlight-text: pip install"):
        LexiconDecoder(LABELS, WORDS)


def test_language_model_decides_between_equals(tmp_path):
    """ "see" and "bee" are equally likely; the model has seen one of them after each word."""
    see, bee = LABELS.encode("see"), LABELS.encode("bee")
    frames = log_probs(alignment(LABELS.encode("cab see")), LABELS)
    position = max(row for row in range(len(frames)) if frames[row].argmax() == see[0])
    frames[position, bee[0]] = frames[position, see[0]]
    for after_cab in ("see", "bee"):
        path = tmp_path / f"{after_cab}.arpa"
        write_arpa([f"cab {after_cab}", "a see", "a bee"], path, order=2, words=WORDS)
        assert LexiconDecoder(LABELS, WORDS, arpa=path).decode(frames) == f"cab {after_cab}"


def test_language_model_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none.arpa does not exist"):
        LexiconDecoder(LABELS, WORDS, arpa=tmp_path / "none.arpa")
    (tmp_path / "bad.arpa").write_text("hello\n")
    with pytest.raises(UserError, match=r"cannot read language model .*bad.arpa"):
        LexiconDecoder(LABELS, WORDS, arpa=tmp_path / "bad.arpa")


def test_language_model_in_other_letters(tmp_path):
    """It would weigh all words alike, and nobody would notice."""
    path = tmp_path / "capitals.arpa"
    write_arpa(["CAB SEE", "A BEE"], path, order=2)
    with pytest.raises(UserError, match=r"capitals.arpa knows none of the words to be found, a, ab, .*in capitals\?"):
        LexiconDecoder(LABELS, WORDS, arpa=path)
    write_arpa(["CAB see", "A BEE"], path, order=2)  # one is enough
    LexiconDecoder(LABELS, WORDS, arpa=path)


def test_unigrams_cannot_be_read(tmp_path):
    """For which reason `write_arpa` writes none."""
    pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    path, words = tmp_path / "1.arpa", ["<s>", "</s>", "<unk>", *WORDS]
    lines = [f"-1.0\t{word}" for word in words]
    path.write_text("\n".join(["\\data\\", f"ngram 1={len(words)}", "", "\\1-grams:", *lines, "", "\\end\\", ""]))
    with pytest.raises(UserError, match=r"cannot read language model .*1.arpa"):
        LexiconDecoder(LABELS, WORDS, arpa=path)
