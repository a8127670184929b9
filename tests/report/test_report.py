"""The report: all of it from complete records, a sentence in place of a picture that has nothing to show."""

import json
import re
from html.parser import HTMLParser

import pytest
from dmao.report import write_report
from dmao.report.figures import level
from dmao.report.records import families, read_run, split_module

FAMILIES = ("feedforward1", "convolution", "attention", "feedforward2")
NAMES = [f"blocks.{block}.{family}" for block in range(3) for family in FAMILIES]
BEFORE = dict.fromkeys(NAMES, 4)
AFTER = BEFORE | {"blocks.0.feedforward2": 0, "blocks.1.feedforward2": 3, "blocks.2.convolution": 9}
EVENT = {
    "step": 50,
    "counts_before": BEFORE,
    "counts_after": AFTER,
    "scores": {name: [1e-5] * 4 for name in NAMES},
    "dropped": 5,
    "grown": 5,
    "copies": {"blocks.2.convolution": [[i, i + 1] for i in range(5)]},
    "removed": 1200,
    "added": 1180,
    "parameters_before": 100_000,
    "parameters": 99_980,
    "seconds": 0.0213,
    "digest": "0123456789abcdef0123",
}
SUMMARY = {
    "baseline": {"params": 100_000, "ce": 0.5, "wer": 20.0, "cer": 6.0, "step_ms": 100.0},
    "dmao": {"params": 99_980, "ce": 0.45, "wer": 19.0, "cer": 6.0, "step_ms": 101.0, "events": 1},
    "overhead": {"scoring_pct": 0.4, "events_pct": 0.02},
}
FIGURES = ("Learning curves of", "Heat map of", "Scores of", "Cosine similarity of")


def _train_rows(last):
    return [{"kind": "train", "step": step, "loss": 3 / step, "step_ms": 9.0} for step in range(1, last + 1)]


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    root = tmp_path / "demo"
    evals = [{"kind": "eval", "split": "dev", "step": step, "ce": 40 / step, "cer": 9.0} for step in (50, 100)]
    health = [
        {
            "kind": "health",
            "step": step,
            "copy_cosine": {"a": {"input": [0.9]}, "b": {"input": [60 / step, 0.5], "output": [-0.5]}},
        }
        for step in (70, 100)
    ]
    _write(root / "baseline" / "metrics.jsonl", _train_rows(100) + evals)
    _write(root / "dmao" / "metrics.jsonl", _train_rows(100) + evals + health)
    _write(root / "dmao" / "events.jsonl", [EVENT])
    scores = [{"step": step, "scores": {name: [1e-5 * step] * 4 for name in NAMES}} for step in (10, 60)]
    _write(root / "dmao" / "scores.jsonl", scores)
    (root / "summary.json").write_text(json.dumps(SUMMARY))
    return root


class _Page(HTMLParser):
    """Collects what a reader meets: labels of pictures, text, tags that stay open, and addresses."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, html):
        super().__init__()
        self.open, self.labels, self.text, self.addresses = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "svg" and attributes.get("role") == "img":
            self.labels.append(attributes.get("aria-label", ""))
        self.addresses += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _page(root, **kwargs):
    page = _Page(write_report(root, **kwargs).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_complete_run_shows_every_picture_and_figure(run):
    page = _page(run)
    for start in FIGURES:
        assert sum(label.startswith(start) for label in page.labels) == 1, start
    assert "What is missing" not in page.text
    for fact in ("100,000", "99,980", "0.4500", "−10.0 %", "−5.0 %", "+1.0 %", "0.40 %", "0.02 %", "21 ms"):
        assert fact in page.text, fact
    assert "5 components: blocks.0.feedforward2\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}4" in page.text
    assert "5 components: blocks.2.convolution\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}5" in page.text
    assert "1,200 parameters went, 1,180 came; 100,000 → 99,980 in use (−20)" in page.text


def test_page_is_self_contained(run):
    html = write_report(run).read_text(encoding="utf-8")
    assert all(address.startswith("#") for address in _Page(html).addresses)
    assert "<script" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_every_colour_of_the_pictures_follows_the_page(run):
    html = write_report(run).read_text(encoding="utf-8")
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    defined = re.findall(r"--([\w-]+): #", html)
    assert {"ink", "dmao", "level0", "level3", "level6"} <= used
    assert all(defined.count(name) == 2 for name in used), "light and dark"
    assert re.search(r"#010[123]0[1-7]", html) is None, "a stand-in was left"


def test_heat_map_annotates_the_counts(run):
    html = write_report(run).read_text(encoding="utf-8")
    heat_map = html[html.index("Heat map of") :].split("</svg>")[0]
    numbers = re.findall(r">(\d+)</text>", heat_map)
    assert numbers.count("9") == 1
    assert numbers.count("4") == 12 + 9
    assert numbers.count("0") == 1 + 2  # the count, and block 0 on either axis


def test_output_is_reproducible(run, tmp_path):
    first = write_report(run, tmp_path / "a.html").read_bytes()
    assert first == write_report(run, tmp_path / "deep" / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("summary.json", "There is no summary yet"),
        ("dmao/events.jsonl", "No event has happened yet"),
        ("dmao/scores.jsonl", "No scores have been logged"),
        ("dmao/metrics.jsonl", "No cosines of copies have been logged"),
    ],
)
def test_missing_file_becomes_a_sentence(run, missing, sentence):
    (run / missing).unlink()
    page = _page(run)
    assert sentence in page.text
    assert f"{missing} is missing." in page.text


def test_empty_run_is_all_sentences(tmp_path):
    page = _page(tmp_path)
    assert page.labels == []
    assert "Nothing has been trained yet." in page.text
    assert "baseline/ is missing" in page.text


def test_killed_writer_costs_one_line_only(run):
    path = run / "dmao" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "train", "step": 101, "lo')
    page = _page(run)
    assert "dmao/metrics.jsonl: 1 line(s) left out because they are not JSON." in page.text
    assert "dmao 100 steps" in page.text


def test_resumed_run_counts_every_step_once(run):
    path = run / "dmao" / "metrics.jsonl"
    repeated = [{"kind": "train", "step": step, "loss": 7.0} for step in range(60, 121)]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in repeated))
    train = read_run(run).arms["dmao"].train
    assert [row["step"] for row in train] == list(range(1, 121))
    assert {row["loss"] for row in train[59:]} == {7.0}


@pytest.mark.parametrize("value", [None, "x", [], {}, float("nan"), float("inf"), True, -1])
def test_odd_values_are_never_fatal(run, value):
    def spoil(row):
        return {key: row[key] if key in ("kind", "step") else value for key in row}

    metrics = run / "dmao" / "metrics.jsonl"
    _write(metrics, [spoil(json.loads(line)) for line in metrics.read_text().splitlines()])
    _write(
        run / "dmao" / "events.jsonl",
        [spoil(EVENT), EVENT | {"step": value}, EVENT | {"counts_after": value}],
    )
    _write(run / "dmao" / "scores.jsonl", [{"step": 1, "scores": dict.fromkeys(NAMES, value)}])
    (run / "summary.json").write_text(json.dumps({"dmao": value, "baseline": {"ce": value}, "overhead": value}))
    _page(run)


def test_names_are_escaped(run):
    _write(run / "dmao" / "events.jsonl", [EVENT | {"counts_after": {"<script>alert(1)</script>": 2}}])
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_run_root_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="run_root must be the directory of a run"):
        write_report(tmp_path / "absent")


def test_modules_are_sorted_into_families():
    assert split_module("encoder.blocks.11.conv") == (11, "encoder.blocks.conv")
    assert split_module("head") == (None, "head")
    assert families(["a.0.ffn", "a.1.ffn", "a.0.conv"]) == {
        "ffn": {0: "a.0.ffn", 1: "a.1.ffn"},
        "conv": {0: "a.0.conv"},
    }
    assert list(families(["encoder.0.ffn", "decoder.0.ffn"])) == ["encoder.ffn", "decoder.ffn"]


def test_colour_levels_are_ordered():
    assert [level(count, 4) for count in (0, 1, 2, 3, 4, 5, 7, 8, 9)] == [0, 1, 1, 2, 3, 4, 4, 5, 6]
    assert level(0, 0) == 3
    assert level(1, 0) == 6


SCRIPT = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "event",
    [
        {
            "counts_before": {SCRIPT: 4},
            "counts_after": {SCRIPT: 2},
            "unit": SCRIPT,
            "digest": SCRIPT,
            "dropped": SCRIPT,
        },
        {"scores": {SCRIPT: [1.0]}, "copies": {SCRIPT: [[0, 1]]}, "seconds": SCRIPT, "parameters": SCRIPT},
        {"counts_before": 5, "counts_after": [], "scores": "x", "copies": 5},
        {"counts_before": {"a": 10**400}, "counts_after": {"a": None}},
        {"counts_before": {f"a.{'9' * 5000}.b": 1}, "counts_after": {f"a.{'9' * 5000}.b": 2}},
        {"step": 10**400},
    ],
)
def test_records_of_strangers_are_text_and_no_more(run, event):
    rows = [{**EVENT, **event}, {"kind": "eval", "split": SCRIPT, "step": 9, "ce": 10**400}, {"step": 9, "scores": [1]}]
    for name, row in zip(("events", "metrics", "scores"), rows, strict=True):
        (run / f"dmao/{name}.jsonl").write_text(json.dumps(row) + "\n" + "[" * 100_000 + "\n")
    (run / "summary.json").write_text(json.dumps({"conditions": {SCRIPT: SCRIPT}, "dmao": {"params": 10**400}}))
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("not JSON") == 3
