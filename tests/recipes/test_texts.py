"""What becomes of the marks in transcripts."""

from __future__ import annotations

import pytest
from dmao.data.labels import Labels
from dmao.data.problems import Findings
from dmao.data.pronounce import PHONES, pronounce, read_dictionary
from dmao.data.stm import read_stm
from dmao.recipes.switchboard.text import NOISES, clean, clean_reference, clean_word, marked, without_noises
from dmao.recipes.tedlium2.corpus import clean as clean_talk
from dmao.scoring import align


@pytest.mark.parametrize(
    ("written", "trained"),
    [
        ("[laughter-yeah]", "yeah"),
        ("[laughter-t[o]-]", "t-"),
        ("[laughter]", "[laughter]"),
        ("[Vocalized-Noise]", "[vocalized-noise]"),
        ("[silence]", ""),
        ("t[o]-", "t-"),
        ("-[a]nd", "-nd"),
        ("[it'n/isn't]", "it'n"),
        ("{yuppiedom}", "yuppiedom"),
        ("[laughter-{coinage}]", "coinage"),
        ("them_1", "them"),
        ("uh-huh", "uh-huh"),
        ("<b_aside>", ""),
        ("-", ""),
        ("[skip]", ""),
        ("I'M", "i'm"),
    ],
)
def test_words_of_switchboard(written, trained):
    assert clean_word(written) == trained


def test_transcripts_of_switchboard():
    assert clean("<b_aside> well [noise] t[o]- to <e_aside> - ") == "well [noise] t- to"
    assert without_noises(f"well {' '.join(NOISES)} to") == "well to"
    assert clean("[silence]") == ""


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("OKAY {we're / we are} going", "okay we're going"),
        ("(%hesitation) uh-huh (wh-)", "uh-huh"),
        ("{@ / um} yes", "yes"),
        ("%hesitation yes <contraction>", "yes"),
        ("(%hesitation)", ""),
        ("((%hesitation) yes", "yes"),
        ("<contraction e_form=\"[it=>it]['s=>is]\">IT'S right", "it's right"),
    ],
)
def test_references_of_hub5(written, plain):
    assert clean_reference(written) == plain


@pytest.mark.parametrize("heard", ["we're going", "we are going", "uh we are going", "we're going wh-"])
def test_marked_references_allow_what_they_say(heard):
    reference = marked("(UH) {we're / we are} <b> going (wh-)")
    assert reference == "(uh) {we're / we are} going (wh-)"
    assert align(reference, heard).count.errors == 0


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("((%HESITATION) yes", "(%hesitation) yes"),
        ("(%HESITATION)) yes", "(%hesitation) yes"),
        ("<contraction e_form=\"[it=>it]['s=>is]\">IT'S <B_ASIDE>right", "{ it's / it is } right"),
        ('{<contraction e_form="[he=>he][is=>is]">HEIS / he} (<contraction e_form="[i=>i]">i)', "{ heis / he} ( i)"),
        ('<contraction e_form="">IT\'S', "it's"),
        ('<odd "> yes', "yes"),
    ],
)
def test_marks_that_are_no_marks_of_words_go(written, kept):
    assert marked(written) == kept


@pytest.mark.parametrize(
    ("written", "trained"),
    [
        ("so i <unk> think that it {NOISE} is(2) great <sil>", "so i think that it is great"),
        ("it 's what we 've got do n't", "it's what we've got do n't"),
        ("{SMACK} <sil>", ""),
        ("six o 'clock rock 'n ' roll the kids ' things", "six o'clock rock'n' roll the kids' things"),
        ("'til then the <unk> 's {NOISE} 's", "'til then the 's 's"),  # a mark is no word to be joined
        ("it(2) <sil> 's", "it's"),
        ("yes<sil>no", "yes no"),
    ],
)
def test_talks(written, trained):
    assert " ".join(clean_talk(written).split()) == trained


def test_segment_time_marks(tmp_path):
    path = tmp_path / "a.stm"
    path.write_text(
        ";; comment\n"
        "a 1 anna 0.5 1.25 <o,f0,male> hello there\n"
        "a A a_A 1.5 2 <unk> world\n"
        "a 1 anna 2 3 ignore_time_segment_in_scoring\n"
        "a 1 inter_segment_gap 3 4 <o,,>\n"
        "a 1 anna 4 5\n"
        "a 1 anna 5 6 <F0_M> ignore_time_segment_in_scoring\n"
        "a 1 excluded_region 6 7 <NA> IGNORE_TIME_SEGMENT_IN_SCORING\n"
        "a 1 anna 7 8 <o,f0,male>\tright here\n"
    )
    findings = Findings()
    lines = list(read_stm(path, findings))
    assert [(line.channel, line.speaker, line.start, line.end, line.labels, line.text) for line in lines] == [
        ("1", "anna", 0.5, 1.25, "<o,f0,male>", "hello there"),
        ("A", "a_A", 1.5, 2.0, "", "<unk> world"),
        ("1", "anna", 4.0, 5.0, "", ""),
        ("1", "anna", 7.0, 8.0, "<o,f0,male>", "right here"),
    ]
    assert findings.left_out == {"not to be scored": 4}
    assert findings.problems == []


def test_dictionaries(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(
        "# comment\n;;; comment\nREAD R EH1 D\nREAD(2) R IY1 D\nREAD(3) R EH0 D\n[noise] nsn\n<sil> sil\nempty\n"
        "GREEN G R IY1 N # color, english\nnothing # said\n"
    )
    findings = Findings()
    assert read_dictionary(path, str.lower, findings) == {
        "read": [["R", "EH", "D"], ["R", "IY", "D"]],
        "green": [["G", "R", "IY", "N"]],
    }
    assert findings.counts() == {"bad line": 2}


def test_phones_that_are_numbers_stay(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("four 4\nten 1 0\neleven 11 a12 a1\n")
    assert read_dictionary(path, str.lower, Findings()) == {
        "four": [["4"]],
        "ten": [["1", "0"]],
        "eleven": [["11", "A12", "A"]],
    }


def test_guesses_have_the_phones_of_the_dictionary():
    known = {"little": [["L", "IH", "T", "EL"]]}
    found, guessed = pronounce(["little", "bottle", "[noise]", "c3po"], known)
    assert found == {**known, "bottle": [["B", "AA", "T", "EL"]], "[noise]": [["[noise]"]]}
    assert guessed == {"bottle"}
    assert pronounce(["bottle"], {})[0] == {"bottle": [["B", "AA", "T", "AH", "L"]]}


@pytest.mark.parametrize("word", ["'em", "’em", "-em", "em-"])
def test_words_without_an_end_are_guessed(word):
    assert pronounce([word], {}) == ({word: [["EH", "M"]]}, {word})


@pytest.mark.parametrize("word", ["'", "--em", "''em"])
def test_marks_are_not(word):
    assert pronounce([word], {}) == ({}, set())


def test_labels_are_as_many_as_published():
    phones = {phone: [phone] for phone in PHONES}
    assert len(Labels.phonemes(phones)) == 79
    noises = {noise: [noise] for noise in NOISES}
    assert len(Labels.phonemes({**phones, "AX": ["AX"], "EL": ["EL"], "EN": ["EN"], **noises})) == 88
