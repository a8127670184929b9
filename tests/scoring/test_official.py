"""Official scoring with a mapping: NIST's forms of rules, hyphens, fragments; hubscr.pl agrees where it is there."""

import re
import shutil
import subprocess

import pytest
from dmao.errors import UserError
from dmao.scoring import ErrorCount, Normaliser, Segment, align, read_glm, write_ctm, write_stm
from dmao.scoring.files import TimedWord

GLM = """;; the first word of the file begins its comments
* name "test.glm"
* desc "rules as NIST writes them"
* format = 'NIST1'
* max_nrules = '100'
* copy_no_hit = 'T'
* case_sensitive = 'F'
UH           => %HESITATION / [ ] __ [ ]
UH-HUH       => %BCACK      / [ ] __ [ ]
OKAY         => O. K.       / [ ] __ [ ]
[[SILENCE]]  => [@]         / [ ] __ [ ]
;; INPUT_DEPENDENT_APPLICATION = "ctm"
[I'D]    => [{I HAD / I WOULD}] / [ ] __ [ ]
[I'M]    => [I AM] / [ ] __ [ ]
[FIRM'S] => [{FIRM'S / FIRM IS / FIRM HAS }] / [ ] __ [ ]
"""
CASES = [
    ("i would go", "i'd go", (0, 0, 0, 3)),
    ("i had gone", "i'd gone", (0, 0, 0, 3)),
    ("i'd go", "i'd go", (1, 1, 0, 2)),  # contractions are taken apart in hypotheses alone
    ("i am", "i'm", (0, 0, 0, 2)),
    ("the firm's talk", "the firm's talk", (0, 0, 0, 3)),
    ("the firm is here", "the firm's here", (0, 0, 0, 4)),
    ("the [silence] end", "the end", (0, 0, 0, 2)),
    ("{ uh / @ } okay", "uh o. k.", (0, 0, 0, 3)),  # rules hold within alternatives
    ("{ okay / fine } yes", "okay yes", (0, 0, 0, 3)),
    ("twenty-one years", "twenty one years", (0, 0, 0, 3)),
    ("twenty one years", "twenty-one years", (0, 0, 0, 3)),
    ("{ t-shirt / shirt } yes", "t shirt yes", (0, 0, 0, 3)),
    ("(uh-huh) yes", "yes", (0, 0, 0, 2)),  # one word for its rule
    ("(t-shirt) yes", "yes", (0, 0, 0, 3)),
    ("(wh-) is", "what is", (0, 0, 0, 2)),
    ("wh- is", "what is", (0, 0, 0, 2)),
    ("what is", "wh- is", (0, 0, 0, 2)),
    ("wh- is", "is", (0, 0, 1, 2)),
    ("wh- is", "that is", (1, 0, 0, 2)),
    ("wha- is", "wh- is", (1, 0, 0, 2)),  # a reference that is a fragment decides
    ("wh- is", "wha- is", (0, 0, 0, 2)),
    ("(you know) yes", "yes", (0, 0, 0, 3)),
    ("(you know) yes", "you yes", (0, 0, 0, 3)),
    ("( uh ) yes", "yes", (0, 0, 0, 2)),
    ("-mething else", "something else", (0, 0, 0, 2)),
    ("anti-ab- yes", "anti abort yes", (0, 0, 0, 3)),
    ("a (uh) no", "a know", (1, 0, 0, 3)),
    ("had th- a", "uh am had", (3, 0, 0, 3)),  # for as much, three of one kind rather than four
]


@pytest.fixture
def official(tmp_path):
    (tmp_path / "test.glm").write_text(GLM)
    return Normaliser(*read_glm(tmp_path / "test.glm"))


@pytest.mark.parametrize(("reference", "hypothesis", "counts"), CASES)
def test_cases(official, reference, hypothesis, counts):
    assert align(reference, hypothesis, official).count == ErrorCount(*counts)


def test_without_a_mapping_words_are_compared_as_they_stand():
    assert align("twenty-one (wh-) is", "twenty one what is").count == ErrorCount(2, 1, 0, 3)


def test_rules_for_one_side(official):
    assert set(official.references) == {("uh",), ("uh-huh",), ("okay",), ("[silence]",)}
    assert set(official.hypotheses) == {*official.references, ("i'd",), ("i'm",), ("firm's",)}
    assert official.hypotheses[("i'd",)] == (("i", "had"), ("i", "would"))
    assert str(official).startswith("7 rules (")


@pytest.mark.parametrize(
    ("expression", "sides"), [("stm", (1, 0)), ("Ref", (1, 0)), ("ctm|stm", (1, 1)), ("hyp", (0, 1))]
)
def test_whom_rules_are_for(tmp_path, expression, sides):
    (tmp_path / "a.glm").write_text(f';; INPUT_DEPENDENT_APPLICATION = "{expression}"\nA => B\n')
    assert tuple(map(len, read_glm(tmp_path / "a.glm"))) == sides


@pytest.mark.parametrize(
    "text", [";; nothing\n", "A => B / X __ [ ]\n", ';; INPUT_DEPENDENT_APPLICATION = "["\nA => B\n', ""]
)
def test_a_mapping_that_maps_nothing(tmp_path, text):
    (tmp_path / "a.glm").write_text(text)
    with pytest.raises(UserError, match=r"a\.glm: expected rules `from => to`, found none that can be used"):
        read_glm(tmp_path / "a.glm")


def test_rules_are_given_by_side(tmp_path):
    (tmp_path / "a.glm").write_text("A => B\n")
    with pytest.raises(TypeError, match="references must map phrases to replacements, got a tuple"):
        Normaliser(read_glm(tmp_path / "a.glm"))


def test_a_rule_that_lacks_its_last_bracket(tmp_path):
    """As that of "Webster's" in en20030506.glm."""
    (tmp_path / "a.glm").write_text("[A'S] => [{A'S / A IS}\n")
    assert read_glm(tmp_path / "a.glm")[0] == {("a's",): (("a's",), ("a", "is"))}


@pytest.mark.skipif(shutil.which("sctk") is None, reason="needs Debian's sctk")
def test_hubscr_finds_the_same(official, tmp_path):
    segments = {f"u{i:02}": Segment(f"r{i:02}", 0.0, 9.0, "A", f"s{i:02}") for i in range(len(CASES))}
    references = dict(zip(segments, (case[0] for case in CASES), strict=True))
    heard = dict(zip(segments, (case[1].split() for case in CASES), strict=True))
    words = {id: [TimedWord(word, i, i + 0.5) for i, word in enumerate(found)] for id, found in heard.items()}
    write_stm(tmp_path / "ref.stm", segments, references)
    write_ctm(tmp_path / "hyp.ctm", segments, words)
    options = ["-V", "-l", "english", "-h", "hub5", "-g", "test.glm", "-r", "ref.stm", "hyp.ctm"]
    subprocess.run(["sctk", "hubscr.pl", *options], cwd=tmp_path, capture_output=True, check=True)
    found = re.findall(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", (tmp_path / "hyp.ctm.filt.pra").read_text())
    expected = [(words - s - d, s, d, i) for _, _, (s, i, d, words) in CASES]
    assert [tuple(map(int, counts)) for counts in found] == expected
