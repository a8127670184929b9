"""The paired bootstrap: exact cases, intervals that cover, files that do not pair."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from dmao.cli import main
from dmao.errors import UserError
from dmao.scoring.compare import compare


def write(path, errors, words=10, speakers=2):
    """A report with so many errors in each utterance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {f"u{i}": {"speaker": f"s{i % speakers}", "counts": [int(n), 0, 0, words]} for i, n in enumerate(errors)}
    path.write_text(json.dumps({"utterances": found}))
    return path


def test_the_same_change_everywhere_has_no_interval(tmp_path):
    first = [write(tmp_path / f"a{i}", [4, 2, 6, 3]) for i in range(3)]
    second = [write(tmp_path / f"b{i}", [3, 1, 5, 2]) for i in range(3)]
    found = compare(first, second, draws=300)
    assert (found.first, found.second) == (37.5, 27.5)
    assert (found.difference, found.low, found.high, found.better) == (-10, -10, -10, 1)
    assert (found.seeds, found.units) == (3, 4)
    assert found.relative == pytest.approx(-100 * 10 / 37.5)
    assert str(found).startswith("WER 37.50 % -> 27.50 %: -10.00 (95 % interval -10.00 to -10.00), -26.7 % relative")


def test_the_interval_is_that_of_independent_draws(tmp_path):
    """Of differences with a known spread over utterances: mean +- 1.96 sd / sqrt(n)."""
    rng = np.random.default_rng(0)
    base = rng.integers(2, 6, 400)
    change = rng.integers(-2, 3, 400)
    found = compare([write(tmp_path / "a", base)], [write(tmp_path / "b", base + change)], draws=4000)
    half = 1.96 * change.std() / np.sqrt(400) * 10
    assert found.difference == pytest.approx(change.mean() * 10)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert compare([tmp_path / "a"], [tmp_path / "b"], draws=4000) == found


def test_seeds_vary_as_well(tmp_path):
    first = [write(tmp_path / f"a{i}", [5] * 50) for i in range(4)]
    second = [write(tmp_path / f"b{i}", [5 + change] * 50) for i, change in enumerate((-2, 2, -2, 2))]
    found = compare(first, second, draws=2000)
    assert found.difference == 0
    assert found.low <= -15
    assert found.high >= 15
    assert 0.2 < found.better < 0.5


def test_each_side_is_counted_by_its_own_words(tmp_path):
    """As its report does: alternatives and --drop leave more words to one side than to the other."""
    first = [write(tmp_path / f"a{i}", [4, 2], words=10) for i in range(2)]
    second = [write(tmp_path / f"b{i}", [4, 2], words=5) for i in range(2)]
    found = compare(first, second, draws=200)
    assert (found.first, found.second, found.difference) == (30, 60, 30)
    assert 20 <= found.low < found.high <= 40


def test_by_speaker(tmp_path):
    first = write(tmp_path / "a", [1, 5] * 20)
    second = write(tmp_path / "b", [3, 3] * 20)
    alike, parted = (compare([first], [second], unit, 500) for unit in ("utterance", "speaker"))
    assert (alike.units, parted.units) == (40, 2)
    assert parted.high - parted.low > alike.high - alike.low


def test_files_that_do_not_pair(tmp_path):
    a, b = write(tmp_path / "a", [1, 2]), write(tmp_path / "b", [1, 2, 3])
    with pytest.raises(UserError, match="as many reports on both sides, got 2 and 1"):
        compare([a, a], [a])
    with pytest.raises(UserError, match=r"b is of other utterances than .*a"):
        compare([a], [b])
    with pytest.raises(UserError, match=r"no report .*none; `dmao decode` writes it"):
        compare([a], [tmp_path / "none"])
    (tmp_path / "bad").write_text("[]")
    with pytest.raises(UserError, match="cannot read report"):
        compare([tmp_path / "bad"], [a])
    with pytest.raises(UserError, match="hold no word"):
        compare([write(tmp_path / "empty", [0], words=0)], [tmp_path / "empty"])


def test_another_search_is_told(tmp_path, caplog):
    reports = [write(tmp_path / side / "report.json", [4, 2]) for side in ("a", "b")]
    for report, scale in zip(reports, (0.9, 0.5), strict=True):
        search = {"kind": "lexicon", "lm": None, "beam": 100, "scales": {"lm": scale}}
        report.with_name("search.json").write_text(json.dumps(search))
    compare(reports[:1], reports[1:], draws=100)
    assert not caplog.messages
    reports[1].with_name("search.json").write_text(json.dumps(search | {"lm": "4-gram.arpa"}))
    compare(reports[:1], reports[1:], draws=100)
    (said,) = caplog.messages
    assert said.startswith(f"compare: not the same search: language model of {reports[0]} is none, of ")
    assert said.endswith("b/report.json 4-gram.arpa")
    caplog.clear()
    reports[1].with_name("search.json").write_text(json.dumps(search | {"normalisation": "without [noise]"}))
    compare(reports[:1], reports[1:], draws=100)
    (said,) = caplog.messages
    assert said.startswith("compare: not the same search: normalisation of ")
    assert said.endswith("without [noise]")


def test_command(tmp_path):
    write(tmp_path / "base" / "decode" / "dev" / "report.json", [4, 2])
    write(tmp_path / "dmao" / "decode" / "dev" / "report.json", [4, 1])
    arguments = [
        "compare",
        str(tmp_path / "base"),
        "--with",
        str(tmp_path / "dmao"),
        "--split",
        "dev",
        "--draws",
        "200",
    ]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert json.loads(result.stdout)["difference"] == -5
    assert CliRunner().invoke(main, arguments).stdout.startswith("WER 30.00 % -> 25.00 %")
    result = CliRunner().invoke(main, arguments[:4])
    assert result.exit_code == 2
    assert "decode/test/report.json" in result.stderr
