"""The report of a scored split, in the manner of sclite: errors per speaker, alignments, confusions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmao.files import write_atomically
from dmao.scoring.align import Alignment
from dmao.scoring.rates import ErrorCount

_COLUMNS = ("# Snt", "# Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err")
_MOST = 50  # confusions that the text shows


@dataclass(frozen=True)
class Utterance:
    """One scored utterance."""

    id: str
    speaker: str
    alignment: Alignment


class Report:
    """Counts over utterances, as text, as plain values, and as files."""

    def __init__(self, utterances: Iterable[Utterance], title: str = ""):
        self.utterances = list(utterances)
        self.title = title
        self.counts = {u.id: u.alignment.count for u in self.utterances}

    @property
    def total(self) -> ErrorCount:
        """All errors."""
        return sum(self.counts.values(), ErrorCount())

    def table(self) -> str:
        """Sentences, words, and percentages of them, per speaker and in all."""
        speakers: dict[str, list[ErrorCount]] = defaultdict(list)
        for utterance in self.utterances:
            speakers[utterance.speaker].append(self.counts[utterance.id])
        rows = [_row(speaker, counts) for speaker, counts in sorted(speakers.items())]
        rows.append(_row("Sum/Avg", list(self.counts.values())))
        width = max(len("SPKR"), *(len(name) for name, _ in rows))
        head = f"| {'SPKR':<{width}} | " + " ".join(f"{c:>6}" for c in _COLUMNS) + " |"
        rule = "|" + "-" * (len(head) - 2) + "|"
        lines = [f"| {name:<{width}} | " + " ".join(f"{v:>6}" for v in values) + " |" for name, values in rows]
        return "\n".join([rule, head, rule, *lines[:-1], rule, lines[-1], rule])

    def confusions(self) -> dict[str, list[tuple[int, str]]]:
        """Kind of error -> (times, what), the most frequent first."""
        found: dict[str, Counter[str]] = {"substitutions": Counter(), "insertions": Counter(), "deletions": Counter()}
        for utterance in self.utterances:
            for expected, heard, excused in utterance.alignment.pairs:
                if expected == heard or excused:
                    continue
                kind = "insertions" if not expected else "deletions" if not heard else "substitutions"
                found[kind][f"{expected} => {heard}" if expected and heard else expected or heard] += 1
        return {kind: [(n, what) for what, n in _by_count(counter)] for kind, counter in found.items()}

    def text(self) -> str:
        """Title, table, and the most frequent errors."""
        parts = [self.title, self.table()]
        for kind, pairs in self.confusions().items():
            lines = [f"{n:>6}  {what}" for n, what in pairs[:_MOST]]
            more = f" (the {_MOST} most frequent)" if len(pairs) > _MOST else ""
            parts.append("\n".join([f"{kind}: {len(pairs)} kinds, {sum(n for n, _ in pairs)} in all{more}", *lines]))
        return "\n\n".join(part for part in parts if part) + "\n"

    def alignments(self) -> str:
        """Reference above hypothesis, word by word, errors in capitals, as in sclite's "pra" reports."""
        return "\n".join(_alignment(u, self.counts[u.id]) for u in self.utterances)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: totals, and [substitutions, insertions, deletions, words] of every utterance."""
        total = self.total
        per_utterance = {u.id: {"speaker": u.speaker, "counts": _four(self.counts[u.id])} for u in self.utterances}
        return {
            "title": self.title,
            "wer": total.percent,
            "substitutions": total.substitutions,
            "insertions": total.insertions,
            "deletions": total.deletions,
            "words": total.reference,
            "utterances": per_utterance,
            "confusions": self.confusions(),
        }

    def write(self, folder: Path) -> None:
        """report.txt, alignments.txt and report.json."""
        write_atomically(folder / "report.txt", self.text())
        write_atomically(folder / "alignments.txt", self.alignments())
        write_atomically(folder / "report.json", json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")


def _row(name: str, counts: Sequence[ErrorCount]) -> tuple[str, list[str]]:
    total = sum(counts, ErrorCount())
    words = max(total.reference, 1)
    correct = total.reference - total.substitutions - total.deletions
    shares = [correct, total.substitutions, total.deletions, total.insertions, total.errors]
    wrong = sum(count.errors > 0 for count in counts)
    percents = [*(100 * share / words for share in shares), 100 * wrong / max(len(counts), 1)]
    return name, [str(len(counts)), str(total.reference), *(f"{p:.1f}" for p in percents)]


def _alignment(utterance: Utterance, count: ErrorCount) -> str:
    lines: tuple[list[str], list[str], list[str]] = ([], [], [])
    for expected, heard, excused in utterance.alignment.pairs:
        right = expected == heard or excused
        mark = " " if right else "I" if not expected else "D" if not heard else "S"
        shown = [word if right else word.upper() for word in (expected, heard)]
        width = max(*map(len, shown), 1)
        cells = (shown[0] or "*" * width, shown[1] or "*" * width, mark)
        for line, cell in zip(lines, cells, strict=True):
            line.append(f"{cell:<{width}}")
    correct = count.reference - count.substitutions - count.deletions
    scores = f"(#C #S #D #I) {correct} {count.substitutions} {count.deletions} {count.insertions}"
    texts = [
        f"{name} {' '.join(cells)}".rstrip() for name, cells in zip(("REF: ", "HYP: ", "Eval:"), lines, strict=True)
    ]
    return "\n".join([f"id: ({utterance.speaker}-{utterance.id})", f"Scores: {scores}", *texts, ""])


def _four(count: ErrorCount) -> list[int]:
    return [count.substitutions, count.insertions, count.deletions, count.reference]


def _by_count(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
