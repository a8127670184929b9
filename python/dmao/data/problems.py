"""What is wrong with a corpus on disk: gathered first, told once, then refused or left out as asked. Never silently."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dmao.errors import UserError
from dmao.files import write_atomically

_log = logging.getLogger(__name__)

PROBLEMS = "problems.jsonl"
_LONGEST_LINE = 10_000  # of a transcript or dictionary; what takes words apart may go over it once for each character
OnProblem = Literal["refuse", "skip"]


@dataclass(frozen=True)
class Problem:
    """kind: "missing audio" and so on.  where: a file, a line of it, an utterance.  detail: expected and found."""

    kind: str
    where: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}" if self.detail else self.where


@dataclass
class Findings:
    """What a preparation found.

    problems: what is wrong with the source; the utterances in question are left out.
    left_out: what holds nothing to learn, as the corpus itself says: why -> number of segments.
    """

    problems: list[Problem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def problem(self, kind: str, where: object, detail: str = "") -> None:
        """Notes a problem."""
        self.problems.append(Problem(kind, str(where), detail))

    def lines(self, path: Path) -> Iterator[tuple[str, str]]:
        """("FILE:NUMBER", text) of the lines of a text file that are not blank; unreadable ones are problems."""
        try:
            content = path.read_bytes()
        except OSError as error:
            self.problem("unreadable file" if path.exists() else "missing file", path, error.strerror or str(error))
            return
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                self.problem("not UTF-8", f"{path}:{number}", f"byte {line[error.start]:#04x} at {error.start}")
                continue
            if "\0" in text or len(text) > _LONGEST_LINE:
                detail = f"expected up to {_LONGEST_LINE} characters, none NUL, got {len(text)}: {text[:50]!r}..."
                self.problem("bad line", f"{path}:{number}", detail)
            elif text.strip():
                yield f"{path}:{number}", text

    def counts(self) -> dict[str, int]:
        """kind -> how many, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def settle(self, root: Path, on_problem: OnProblem) -> None:
        """Writes ROOT/problems.jsonl and tells what it holds: as an error, or as a warning where that is asked for.

        Raises UserError for problems, unless `on_problem` is "skip".
        """
        path = root / PROBLEMS
        if not self.problems:
            path.unlink(missing_ok=True)
            return
        rows = (json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in self.problems)
        write_atomically(path, "".join(rows))
        if on_problem == "refuse":
            raise UserError(
                f"{self.summary()}. All are in {path}; mend the source, or let --on-problem skip leave them out"
            )
        _log.warning("%s. Left out; all are in %s", self.summary(), path)

    def summary(self) -> str:
        """One line: how many of each kind, and the first of them."""
        first = {problem.kind: problem for problem in reversed(self.problems)}
        parts = [f"{count} {kind} ({first[kind]})" for kind, count in self.counts().items()]
        return f"{len(self.problems)} problems in the source: {'; '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the files of the stages."""
        return {"problems": [asdict(problem) for problem in self.problems], "left_out": dict(self.left_out)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Findings:
        """The inverse of to_dict."""
        return cls([Problem(**problem) for problem in values["problems"]], Counter(values["left_out"]))

    def add(self, others: Findings) -> None:
        """Takes those of another stage in."""
        self.problems += others.problems
        self.left_out += others.left_out
