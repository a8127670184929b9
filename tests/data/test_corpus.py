import gzip
import shutil

import pytest
from dmao.data.corpus import Corpus, installed_versions, preparing
from dmao.data.manifests import read_manifest
from dmao.errors import UserError


def test_load_finds_what_was_prepared(small_corpus):
    assert Corpus.load(small_corpus.root) == small_corpus
    assert str(small_corpus).startswith("embedded: train ")


def test_no_corpus(tmp_path):
    with pytest.raises(UserError, match=r"no prepared corpus in .*run `dmao prepare` first"):
        Corpus.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', "\x00"])
def test_damaged_stamp(tmp_path, content):
    (tmp_path / "corpus.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot read .*corpus.json"):
        Corpus.load(tmp_path)


def test_unknown_split(small_corpus):
    with pytest.raises(UserError, match="no split 'eval'; it has train, dev, test"):
        small_corpus.cuts("eval")


def damaged(kind, good):
    return {
        "cut off": good[: len(good) // 2],
        "not gzip": b"hello\n",
        "no JSON": gzip.compress(b"{broken\n"),
        "other JSON": gzip.compress(b'{"type": "MonoCut", "colour": 1}\n'),
    }[kind]


@pytest.mark.parametrize("kind", ["cut off", "not gzip", "no JSON", "other JSON"])
def test_damaged_manifest(small_corpus, tmp_path, kind):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(damaged(kind, small_corpus.manifest("train").read_bytes()))
    with pytest.raises(UserError, match=r"cannot read manifest .*train.jsonl.gz: \w+"):
        read_manifest(path, tmp_path)


def test_empty_and_missing_manifest(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(path, tmp_path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="holds no utterance"):
        read_manifest(path, tmp_path)


def test_missing_or_damaged_lexicon(small_corpus, tmp_path):
    shutil.copy(small_corpus.root / "corpus.json", tmp_path)
    with pytest.raises(UserError, match="cannot read the lexicon"):
        Corpus.load(tmp_path).lexicon()


def test_os_errors_become_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*x: No space left on device"), preparing(tmp_path):
        raise OSError(28, "No space left on device", "x")


def test_missing_package_is_named():
    with pytest.raises(UserError, match="needs the package no-such-speech-engine: pip install"):
        installed_versions("lhotse", "no-such-speech-engine")


def test_texts_are_utf_8_whatever_the_locale_is(tmp_path, run_python):
    code = f"""
import gzip, locale
from pathlib import Path
from lhotse import CutSet
from dmao.data.manifests import make_cut, read_manifest, write_manifest
assert locale.getpreferredencoding(False).lower() != "utf-8"
cut = make_cut("a", Path("a.wav"), 16000, text="p\\u011bkn\\xfd", speaker="ann", language="cs")
path = Path({str(tmp_path)!r}) / "dev.jsonl.gz"
write_manifest(path, CutSet.from_cuts([cut]))
assert "\\u011b" in gzip.open(path).read().decode("utf-8")
(found,) = read_manifest(path, path.parent)
print(found.supervisions == cut.supervisions)
"""
    ran = run_python("-c", code, LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert ran.stdout.strip() == "True", ran.stderr
