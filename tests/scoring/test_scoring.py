"""Normalisation, alignment, reports and files of scoring; sclite agrees where it is installed."""

import json
import random
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from dmao.errors import UserError
from dmao.scoring import (
    ErrorCount,
    Normaliser,
    Report,
    Segment,
    Utterance,
    align,
    read_glm,
    wer,
    write_ctm,
    write_stm,
    write_trn,
)
from dmao.scoring.files import TimedWord

GLM = """;; a comment
* name "test.glm"
* case_sensitive = 'F'
[UH]      => %HESITATION / [ ] __ [ ]
[UM]      => %HESITATION / [ ] __ [ ] ;; behind a rule
[I'M]     => {[I'M] / [I AM]} / [ ] __ [ ]
[OH KAY]  => OKAY / [ ] __ [ ]
[FOO]     => BAR / [A] __ [ ]
GONNA     => GOING TO
[MM]      => @ / [ ] __ [ ]
"""


@pytest.fixture
def normaliser(tmp_path):
    (tmp_path / "test.glm").write_text(GLM)
    return Normaliser(*read_glm(tmp_path / "test.glm"), drop=["[noise]"])


def test_rules(normaliser):
    assert normaliser.hypotheses == normaliser.references
    assert normaliser.references == {
        ("uh",): (("%hesitation",),),
        ("um",): (("%hesitation",),),
        ("i'm",): (("i'm",), ("i", "am")),
        ("oh", "kay"): (("okay",),),
        ("gonna",): (("going", "to"),),
        ("mm",): ((),),
    }


def test_normalisers_are_told_apart_by_what_they_do(normaliser):
    assert str(Normaliser()) == "none"
    assert re.fullmatch(r"\d+ rules \([0-9a-f]{8}\), without \[noise\]", str(normaliser))
    rules = normaliser.references
    backwards = dict(reversed(rules.items()))
    assert str(replace(normaliser, references=backwards, hypotheses=backwards)) == str(normaliser)
    others = [{"references": rules | {("uh",): (("um",),)}}, {"hypotheses": {}}, {"drop": ["uh"]}]
    assert len({str(one) for one in [normaliser, *(replace(normaliser, **other) for other in others)]}) == 4


def test_rules_for_certain_neighbours_are_told(normaliser, caplog, tmp_path):
    read_glm(tmp_path / "test.glm")
    assert "1 rules that depend on the neighbours are left out" in caplog.text


def test_files_that_are_no_mapping(tmp_path):
    with pytest.raises(UserError, match=r"cannot read mapping .*none.glm"):
        read_glm(tmp_path / "none.glm")
    (tmp_path / "bad.glm").write_text(";; x\nhello\n")
    with pytest.raises(UserError, match=r"bad.glm, line 2: expected `from => to`, got 'hello'"):
        read_glm(tmp_path / "bad.glm")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("I'm here", "i am here", (0, 0, 0, 3)),
        ("i am here", "i'm here", (0, 0, 0, 3)),
        ("i'm here", "I'M here", (0, 0, 0, 2)),
        ("oh kay", "okay", (0, 0, 0, 1)),
        ("so (uh) yes", "so yes", (0, 0, 0, 3)),  # as in sclite a word that may be missing counts as one
        ("so (uh) yes", "so um yes", (0, 0, 0, 3)),
        ("so uh yes", "so yes", (0, 0, 1, 3)),
        ("so (uh) yes", "so the yes", (1, 0, 0, 3)),
        ("so (you know) yes", "so yes", (0, 0, 0, 4)),
        ("so t(o) yes", "so t(o) yes", (0, 0, 0, 3)),
        ("{ (so) / a b } yes", "yes", (0, 0, 0, 1)),
        ("{ so (uh) / a } yes", "so yes", (0, 0, 0, 2)),
        ("{ the / @ } end", "end", (0, 0, 0, 1)),
        ("{ a b / c } end", "c end", (0, 0, 0, 2)),
        ("{a b/c} end", "a end", (0, 0, 1, 3)),
        ("gonna go", "going to go [noise]", (0, 0, 0, 3)),
        ("mm yes", "yes mm", (0, 0, 0, 1)),
        ("foo", "bar", (1, 0, 0, 1)),
        ("[noise]", "", (0, 0, 0, 0)),
        ("", "a", (0, 1, 0, 0)),
    ],
)
def test_what_counts_as_the_same(normaliser, reference, hypothesis, counts):
    assert align(reference, hypothesis, normaliser).count == ErrorCount(*counts)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Well [noise] t- (Uh) uh", "Well t-"),
        ("[noise]", ""),
        ("{ the / uh / (uh) a } end", "{ the / @ / a } end"),
        ("{uh/[noise]} ( uh um) go", "uh/[noise] (um) go"),  # no alternatives without blanks
        ("{ uh / [noise] } end", "end"),
    ],
)
def test_references_for_other_tools(text, left):
    assert Normaliser(drop=["Uh", "[noise]"]).for_sclite(text) == left


def test_marks_are_written_as_sclite_reads_them():
    text = "( uh ) (you know) {a / (b) c} t(o)"
    assert Normaliser(drop=["e\u0301"]).for_sclite("ba \u00e9") == "ba"
    assert Normaliser().for_sclite(text) == "(uh) (you) (know) { a / b c / c } t(o)"


@pytest.mark.parametrize("text", ["{ a / b", "a }", "{ a { b } }"])
def test_braces_must_pair(text):
    with pytest.raises(UserError, match="do not pair"):
        align(text, "a")


def texts(seed):
    rng = random.Random(seed)
    return " ".join(rng.choices("abcd", k=rng.randint(0, 9)))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("(uh) no", "know", (1, 0, 0, 2)),
        ("yes (uh) no", "yes know", (1, 0, 0, 3)),
        ("x (uh) (um) a", "x b", (1, 0, 0, 4)),
        ("{ a / b c } { b d / e }", "b c e", (0, 0, 0, 3)),
        ("{ a b / @ } { b c / c d }", "c d", (0, 0, 0, 2)),
    ],
)
def test_marks_cost_what_they_do_in_sclite(reference, hypothesis, counts):
    """A word that may be missing less than another; of all combinations of alternatives the cheapest one counts."""
    assert align(reference, hypothesis).count == ErrorCount(*counts)


def test_alignments_are_whole_and_agree_with_the_rate():
    pairs = [(texts(seed), texts(-seed - 1)) for seed in range(60)]
    for reference, hypothesis in pairs:
        found = align(reference, hypothesis)
        assert [p.reference for p in found.pairs if p.reference] == reference.split()
        assert [p.hypothesis for p in found.pairs if p.hypothesis] == hypothesis.split()
        assert found.count == wer([reference], [hypothesis])


def test_alternatives_that_were_not_said_change_nothing():
    """Those go through networks, plain texts through kaldialign; of equal costs each may take another way."""
    for seed in range(60):
        reference, hypothesis = texts(seed), texts(-seed - 1)
        marked = " ".join(f"{{ {word} / z z / y }}" for word in reference.split())
        plain, found = (align(one, hypothesis).count for one in (reference, marked))
        costs = [4 * one.substitutions + 3 * (one.insertions + one.deletions) for one in (plain, found)]
        assert costs[0] == costs[1]
        assert found.errors <= plain.errors


def report():
    lines = [
        ("u1", "ann", "a b c", "a x c"),
        ("u2", "ann", "a b", "a b"),
        ("u3", "bob", "a b (uh)", "b y"),
        ("u4", "bob", "", ""),
        ("u5", "bob", "b c", "x c d"),
    ]
    return Report([Utterance(id, speaker, align(ref, hyp)) for id, speaker, ref, hyp in lines], "five utterances")


def test_table_in_the_manner_of_sclite():
    assert report().table().splitlines()[3:] == [
        "| ann     |      2      5   80.0   20.0    0.0    0.0   20.0   50.0 |",
        "| bob     |      3      5   40.0   40.0   20.0   20.0   80.0   66.7 |",
        "|-------------------------------------------------------------------|",
        "| Sum/Avg |      5     10   60.0   30.0   10.0   10.0   50.0   60.0 |",
        "|-------------------------------------------------------------------|",
    ]


def test_report_as_values():
    found = json.loads(json.dumps(report().to_dict()))
    assert {k: found[k] for k in ("title", "wer", "substitutions", "insertions", "deletions", "words")} == {
        "title": "five utterances",
        "wer": 50.0,
        "substitutions": 3,
        "insertions": 1,
        "deletions": 1,
        "words": 10,
    }
    assert found["utterances"]["u1"] == {"speaker": "ann", "counts": [1, 0, 0, 3]}
    assert found["confusions"] == {
        "substitutions": [[2, "b => x"], [1, "uh => y"]],
        "insertions": [[1, "d"]],
        "deletions": [[1, "a"]],
    }


def test_report_as_files(tmp_path):
    report().write(tmp_path / "new")
    text = (tmp_path / "new" / "report.txt").read_text()
    assert text.startswith("five utterances\n\n|---")
    assert "substitutions: 2 kinds, 3 in all\n     2  b => x\n" in text
    first = (tmp_path / "new" / "alignments.txt").read_text().split("\n\n")[0]
    assert first.splitlines() == [
        "id: (ann-u1)",
        "Scores: (#C #S #D #I) 2 1 0 0",
        "REF:  a B c",
        "HYP:  a X c",
        "Eval:   S",
    ]
    assert json.loads((tmp_path / "new" / "report.json").read_text())["wer"] == 50.0


def test_empty_report():
    assert Report([]).total == ErrorCount()
    assert "Sum/Avg" in Report([]).text()


SEGMENTS = {
    "u2": Segment("talk", 3.0, 4.5, "A", "ann"),
    "u1": Segment("talk", 1.0, 2.0, "A", "ann"),
    "u3": Segment("other", 0.0, 1.0, "B", "bob"),
}


def test_files_for_other_tools(tmp_path):
    write_stm(tmp_path / "ref.stm", SEGMENTS, {"u1": "a  b", "u2": "c", "u3": ""})
    assert (tmp_path / "ref.stm").read_text().splitlines() == [
        "other B bob 0.000 1.000",
        "talk A ann 1.000 2.000 a b",
        "talk A ann 3.000 4.500 c",
    ]
    words = {"u1": [TimedWord("a", 0.1, 0.3), TimedWord("b", 0.5, 0.5)], "u2": [TimedWord("c", 9.0, 9.2)]}
    write_ctm(tmp_path / "hyp.ctm", SEGMENTS, words)
    assert (tmp_path / "hyp.ctm").read_text().splitlines() == [
        "talk A 1.100 0.200 a",
        "talk A 1.500 0.001 b",
        "talk A 4.500 0.200 c",  # never beyond its segment
    ]
    write_trn(tmp_path / "ref.trn", SEGMENTS, {"u1": "a b", "u3": ""})
    assert (tmp_path / "ref.trn").read_text().splitlines() == ["a b (ann-u1)", "(bob-u3)"]


@pytest.mark.skipif(shutil.which("sctk") is None, reason="needs Debian's sctk")
def test_sclite_finds_the_same(tmp_path):
    pairs = {f"u{seed}": (texts(seed) or "a", texts(-seed - 1)) for seed in range(40)}
    segments = {id: Segment("r", 0.0, 1.0, speaker=f"s{id[-1]}") for id in pairs}
    for name, side in (("ref.trn", 0), ("hyp.trn", 1)):
        write_trn(tmp_path / name, segments, {id: pair[side] for id, pair in pairs.items()})
    command = ["sctk", "sclite", "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn", "-i", "rm", "-o", "rsum", "stdout"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in out.splitlines() if re.match(r"\s*\|\s*Sum\s", line)]
    numbers = [int(n) for n in re.findall(r"\d+", line)]
    total = sum((align(*pair).count for pair in pairs.values()), ErrorCount())
    assert numbers[:2] == [40, total.reference]
    assert numbers[3:7] == [total.substitutions, total.deletions, total.insertions, total.errors]
