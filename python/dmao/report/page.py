"""The page around the pictures: plain HTML and CSS, no script, nothing fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dmao.report import figures
from dmao.report.records import ARMS, Row, Run, mapping, number
from dmao.report.style import STYLE

_MEASURES = (  # key in summary.json, row header, format
    ("params", "parameters", "{:,.0f}"),
    ("ce", "cross-entropy", "{:.4f}"),
    ("wer", "word error rate, %", "{:.2f}"),
    ("cer", "character error rate, %", "{:.2f}"),
    ("step_ms", "time of a step, ms", "{:.1f}"),
)
_LEVEL_NAMES = ("none left", "half or less", "fewer", "unchanged", "more", "twice", "more than twice")


def render(run: Run) -> str:
    """The whole report of `run` as one HTML document."""
    dmao = run.arms["dmao"]
    sections = [
        _section("Result", _result_table(run.summary) + _overheads(run.summary), "", _conditions(run.summary)),
        _section(
            "Learning curves",
            _picture(figures.learning_curves(run.arms)),
            "Neither arm has written training or evaluation rows yet.",
            "Both arms start from the same seed and see the same batches in the same order. "
            "The loss is smoothed; faint: the logged values. Dashed: the events.",
        ),
        _section(
            "Where the components went",
            _with_legend(figures.component_maps(dmao.events)),
            "No event has happened yet, so every module still has the width that it started with.",
            "Number of components per block and family; the colour compares it with the start.",
        ),
        _section("Events", _events(dmao.events), "No event has been logged."),
        _section(
            "Scores",
            _picture(figures.scores_over_time(dmao.scores, dmao.events)),
            "No scores have been logged.",
            "What the plan ranks: the running mean of every component's score, here averaged over a module.",
        ),
        _section(
            "Do the copies learn something of their own?",
            _picture(figures.copy_cosines(dmao.health, dmao.events)),
            "No cosines of copies have been logged.",
            "Input weights start as equals, at 1: a copy that stays there is inert, it only repeats its source. Output "
            "weights are split unevenly at the event, which is what drives the two apart.",
        ),
    ]
    name = escape(run.root.name or str(run.root.resolve().name))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Grow and drop: {name}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>Grow and drop: {name}</h1>\n<p>{_headline(run)}</p></header>\n<main>\n"
        + "\n".join(sections)
        + _problems(run.problems)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str | None, otherwise: str, explanation: str = "") -> str:
    body = content or f'<p class="absent">{escape(otherwise)}</p>'
    if explanation and content:
        body = f"<figure>{body}<figcaption>{escape(explanation)}</figcaption></figure>"
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _headline(run: Run) -> str:
    steps = {name: arm.train[-1]["step"] for name, arm in run.arms.items() if arm.train}
    events = len(run.arms["dmao"].events)
    if not steps:
        return "Nothing has been trained yet."
    trained = ", ".join(f"{escape(name)} {step:,} steps" for name, step in steps.items())
    return (
        "A model whose widths stay uniform beside one whose widths are re-allocated during training. "
        f"Trained: {trained}; {events} event{'' if events == 1 else 's'}."
    )


def _conditions(summary: Mapping[str, Any]) -> str:
    """One sentence about where the figures come from, of what the summary tells about it."""
    found = mapping(summary.get("conditions"))
    told = [f"{key.replace('_', ' ')} {value}" for key, value in found.items() if isinstance(value, str | int)]
    return f"One run each: {', '.join(told)}." if told else ""


def _result_table(summary: Mapping[str, Any]) -> str:
    arms = {arm: mapping(summary.get(arm)) for arm in ARMS}
    if not any(arms.values()):
        return '<p class="absent">There is no summary yet: it is written when both arms have been evaluated.</p>'
    rows = []
    for key, header, form in _MEASURES:
        values = [number(arms[arm].get(key)) for arm in ARMS]
        cells = "".join(f"<td>{'–' if value is None else form.format(value)}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{header}</th>{cells}<td>{_relative(*values)}</td></tr>')
    head = "".join(f'<th scope="col" class="{arm}">{arm}</th>' for arm in ARMS)
    return (
        f'<div class="scroll"><table><thead><tr><td></td>{head}<th scope="col">dmao to baseline</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _relative(before: float | None, after: float | None) -> str:
    if before is None or after is None or before == 0:
        return "–"
    return f"{100 * (after - before) / abs(before):+.1f} %".replace("-", "−")


def _overheads(summary: Mapping[str, Any]) -> str:
    overhead = mapping(summary.get("overhead"))
    intervals = mapping(overhead.get("intervals"))
    parts = [
        f"{what} <b>{value:.2f} %</b>{_interval(intervals.get(key))}".replace("-", "−")
        for key, what in (("scoring_pct", "scoring"), ("events_pct", "events"))
        if (value := number(overhead.get(key))) is not None
    ]
    if not parts:
        return '<p class="absent">The overhead of scoring and of events has not been measured.</p>'
    return f"<p>Measured overhead on the time of training: {', '.join(parts)}.</p>"


def _interval(bounds: Any) -> str:
    found = [number(bound) for bound in bounds] if isinstance(bounds, list) else []
    low, high = found if len(found) == 2 else (None, None)
    return "" if low is None or high is None else f" (95 % interval {low:.2f} to {high:.2f})"


def _picture(svg: str | None) -> str | None:
    return svg and f'<div class="scroll">{svg}</div>'  # on a narrow screen it scrolls: text stays legible


def _with_legend(svg: str | None) -> str | None:
    if svg is None:
        return None
    keys = "".join(f'<li><span class="key level{i}"></span>{name}</li>' for i, name in enumerate(_LEVEL_NAMES))
    return f'{_picture(svg)}<ul class="legend" aria-label="Colours of the heat map">{keys}</ul>'


def _events(events: Sequence[Row]) -> str | None:
    return "".join(_event(event) for event in events) or None


def _event(event: Row) -> str:
    keys = ("removed", "added", "parameters_before", "parameters", "seconds")
    removed, added, parameters_before, parameters, seconds = (number(event.get(key)) for key in keys)
    dropped, grown = _changes(event)
    facts = []
    if removed is not None and added is not None:
        facts.append(f"{removed:,.0f} {escape(str(event.get('unit', 'parameters')))} went, {added:,.0f} came")
    if parameters_before is not None and parameters is not None:
        change = f"{parameters - parameters_before:+,.0f}".replace("-", "−")
        facts.append(f"{parameters_before:,.0f} → {parameters:,.0f} in use ({change})")
    if seconds is not None:
        facts.append(f"took {1000 * seconds:,.0f} ms")
    if event.get("digest"):
        facts.append(f"plan <code>{escape(str(event['digest'])[:12])}</code>")
    return (
        f"<article><h3>Step {event['step']:,}</h3><p>{'; '.join(facts) or 'No figures were logged.'}.</p><dl>"
        f"<dt>dropped</dt><dd>{_components(dropped)}</dd><dt>grown</dt><dd>{_components(grown)}</dd></dl></article>"
    )


def _changes(event: Row) -> tuple[Counter[str], Counter[str]]:
    """Components dropped and grown per module: what is new is a copy, or fresh where the module was empty."""
    before, after = mapping(event.get("counts_before")), mapping(event.get("counts_after"))
    copies = mapping(event.get("copies"))
    dropped, grown = Counter[str](), Counter[str]()
    for name in after:
        at_start, at_end = int(number(before.get(name)) or 0), int(number(after[name]) or 0)
        pairs = copies.get(name)
        new = len(pairs) if isinstance(pairs, list) else max(0, at_end - at_start)
        grown[name] = new if at_start else at_end
        dropped[name] = at_start + grown[name] - at_end
    return +dropped, +grown


def _components(per_module: Counter[str]) -> str:
    listed = ", ".join(f"<code>{escape(name)}</code>&nbsp;×&nbsp;{count}" for name, count in per_module.items())
    total = per_module.total()
    return f"{total} component{'' if total == 1 else 's'}: {listed}" if listed else "nothing"


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f'<section><h2>What is missing</h2><ul class="absent">{items}</ul></section>'
