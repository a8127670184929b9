import sys

import numpy as np
import pytest
import torch
from dmao.data.labels import BLANK, BOUNDARY, Labels
from dmao.decode import LexiconDecoder, greedy, write_arpa
from dmao.errors import UserError
from dmao.score import wer

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
    assert greedy(frames, PHONEMES) == "ɐ | k æ t | æ t | t æ k"


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

    decoder = LexiconDecoder(LABELS, words, word_score=40.0)  # so that a word beats silence
    assert decoder.decode(frames) == min(words, key=loss)


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


def test_vocabulary_is_checked():
    with pytest.raises(UserError, match="at least one word"):
        LexiconDecoder(LABELS, [])
    with pytest.raises(UserError, match="character 'z'"):
        LexiconDecoder(LABELS, ["zoo"])


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
        assert LexiconDecoder(LABELS, WORDS, arpa=path, lm_weight=1.0).decode(frames) == f"cab {after_cab}"


def test_language_model_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none.arpa does not exist"):
        LexiconDecoder(LABELS, WORDS, arpa=tmp_path / "none.arpa")
    (tmp_path / "bad.arpa").write_text("hello\n")
    with pytest.raises(UserError, match=r"cannot read language model .*bad.arpa"):
        LexiconDecoder(LABELS, WORDS, arpa=tmp_path / "bad.arpa")
