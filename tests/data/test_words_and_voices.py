import os
import subprocess
import sys
from collections import Counter

import pytest
from dmao.data.embedded import HELD_OUT_VOICES, TRAINING_VOICES
from dmao.data.espeak import Espeak, lexicon
from dmao.data.words import WORDS, vocabulary
from dmao.errors import UserError


@pytest.fixture(scope="module")
def engine():
    return Espeak()


def test_the_list_is_plain_and_long_enough():
    assert len(WORDS) >= 500
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isascii() and word.isalpha() and word.islower() and 2 < len(word) <= 8 for word in WORDS)


def test_no_two_words_sound_alike():
    for accent in ("en-us", "en"):
        sounds = Counter(tuple(phones) for phones in lexicon(list(WORDS), accent).values())
        assert [sound for sound, count in sounds.items() if count > 1] == []


def test_smaller_vocabularies_are_subsets():
    assert set(vocabulary(20)) < set(vocabulary(150)) < set(vocabulary(len(WORDS))) == set(WORDS)
    assert list(vocabulary(150)) == sorted(vocabulary(150))


@pytest.mark.parametrize("count", [0, 19, len(WORDS) + 1])
def test_vocabulary_size_is_checked(count):
    with pytest.raises(UserError, match=f"words must lie between 20 and {len(WORDS)}, got {count}"):
        vocabulary(count)


def test_every_voice_exists_and_none_is_in_both_sets(engine):
    assert len(TRAINING_VOICES) == 59
    assert len(HELD_OUT_VOICES) == 16
    assert not set(TRAINING_VOICES) & set(HELD_OUT_VOICES)
    for voice in TRAINING_VOICES + HELD_OUT_VOICES:
        engine.set_voice(f"en-us+{voice}")


def test_unknown_voice(engine):
    with pytest.raises(UserError, match="no voice 'en-us-mars'"):
        engine.set_voice("en-us-mars")


def test_phones_carry_no_stress(engine):
    engine.set_voice("en-us")
    assert engine.phones("about") == ["ɐ", "b", "aʊ", "t"]
    assert not set("ˈˌ_ ") & set("".join("".join(phones) for phones in lexicon(list(WORDS)).values()))


def test_pronunciation_does_not_depend_on_what_was_said_before():
    words = list(vocabulary(20))
    assert lexicon(words) == lexicon(words[::-1])


def test_word_without_sound():
    with pytest.raises(UserError, match="no pronunciation for ''"):
        lexicon([""])


def test_data_in_a_deep_folder(tmp_path):
    """The engine cuts paths off at 160 bytes; the short way to its data is gone with the process."""
    import espeakng_loader

    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.parent.mkdir()
    deep.symlink_to(espeakng_loader.get_data_path())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import sys, espeakng_loader\n"
        "espeakng_loader.get_data_path = lambda: sys.argv[1]\n"
        "from dmao.data.espeak import Espeak\n"
        "for _ in range(2): Espeak().set_voice('en-us')\n"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", code, deep], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []
