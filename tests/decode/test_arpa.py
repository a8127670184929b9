import gzip
import itertools

import pytest
from dmao.data.labels import Labels
from dmao.decode import LexiconDecoder
from dmao.decode.arpa import WittenBell, write_arpa
from dmao.errors import UserError

SENTENCES = ["a b a", "b a c", "a", ""]


def read(path):
    """Return n-gram -> (log10 probability, log10 back-off) of an ARPA file."""
    table = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "\t" in line:
            probability, ngram, *backoff = line.split("\t")
            table[tuple(ngram.split())] = (float(probability), float(backoff[0]) if backoff else 0.0)
    return table


def lookup(table, history, word):
    """Evaluate as every reader of ARPA does: the longest n-gram there is, with the back-offs passed on the way."""
    if (*history, word) in table:
        return table[(*history, word)][0]
    return table.get(history, (0, 0.0))[1] + lookup(table, history[1:], word)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_history_sums_to_one(order):
    model = WittenBell(SENTENCES, order, words=["d"])
    for history in itertools.chain([()], itertools.product(["<s>", "a", "b", "d"], repeat=order - 1)):
        assert sum(model.probability(history, word) for word in model.vocabulary) == pytest.approx(1)


def test_witten_bell_by_hand():
    """After "a" came "b", "c" and twice the end: 4 tokens of 3 types. 3 + 3 + 1 + 0 words and 4 ends are 11 tokens."""
    model = WittenBell(SENTENCES, 2)
    assert model.vocabulary == ["</s>", "<unk>", "a", "b", "c"]
    unigram = (2 + 4 / 5) / (11 + 4)
    assert model.probability((), "b") == pytest.approx(unigram)
    assert model.probability(("a",), "b") == pytest.approx((1 + 3 * unigram) / 7)
    assert model.backoff(("a",)) == pytest.approx(3 / 7)


def test_marks_of_sentences_are_no_words():
    marked = WittenBell(["<s> a b a </s>", "b a </s> <s> c", "<s> a", "<s> </s>"], 3)
    plain = WittenBell(SENTENCES, 3)
    assert (marked.vocabulary, marked.followers) == (plain.vocabulary, plain.followers)


@pytest.mark.parametrize("order", [2, 3])
def test_file_says_what_the_model_says(tmp_path, order):
    path = tmp_path / "ř.arpa"
    write_arpa(SENTENCES, path, order, words=["d"])
    model, table = WittenBell(SENTENCES, order, ["d"]), read(path)
    for history in itertools.product(["<s>", "a", "b", "d"], repeat=order - 1):
        for word in model.vocabulary:
            assert 10 ** lookup(table, history, word) == pytest.approx(model.probability(history, word), rel=1e-4)
    counts = [len([ngram for ngram in table if len(ngram) == length]) for length in range(1, order + 1)]
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert head.splitlines() == ["\\data\\", *(f"ngram {i}={count}" for i, count in enumerate(counts, 1))]
    assert path.read_text(encoding="utf-8").endswith("\\end\\\n")


def test_same_sentences_same_file(tmp_path):
    for name in "ab":
        write_arpa(iter(SENTENCES), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match=r"order .* at least 2 \(KenLM reads no unigram models\), got 1"):
        write_arpa(SENTENCES, tmp_path / "x", 1)
    with pytest.raises(UserError, match="at least one sentence"):
        write_arpa([], tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_arpa(SENTENCES, tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda good: good.replace(b"ngram 1=", b"ngram 1=-"), "must begin with"),  # KenLM would crash
        (lambda good: good.replace(b"ngram 1=", b"ngram 1=99999999"), "promises"),  # it would ask for the memory
        (lambda good: gzip.compress(good.replace(b"ngram 1=", b"ngram 1=-")), "must begin with"),
        (lambda good: b"mmap lm http://kheafield.com/code format version 5\n\0", "must begin with"),
        (lambda good: good[: len(good) // 2], "End of file"),
        (lambda good: good.replace(b"-99.000000", b"nan"), "ParseNumber"),
        (lambda good: b"\x1f\x8b\x08\0", "Compressed file ended"),
        (lambda good: b"", "must begin with"),
    ],
)
def test_models_of_strangers_are_refused(tmp_path, content, said):
    path = tmp_path / "x.arpa"
    write_arpa(SENTENCES, path, 2)
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(UserError, match=f"cannot read language model .*x.arpa: .*{said}"):
        LexiconDecoder(Labels.characters(SENTENCES), ["a", "b"], arpa=path)


def test_packed_models_are_written_and_read(tmp_path, monkeypatch):
    for hour, name in enumerate(("x.arpa", "x.arpa.gz", "later.arpa.gz")):
        monkeypatch.setattr("time.time", lambda hour=hour: 3600.0 * hour)
        write_arpa(SENTENCES, tmp_path / name, 2)
    packed = (tmp_path / "x.arpa.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "x.arpa").read_bytes()
    assert packed == (tmp_path / "later.arpa.gz").read_bytes()
    LexiconDecoder(Labels.characters(SENTENCES), ["a", "b"], arpa=tmp_path / "x.arpa.gz")
