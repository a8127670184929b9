"""The scales of a search, tuned on a split: LM scale, prior scale and word score with the fewest word errors."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dmao.decode import Scales
from dmao.errors import UserError
from dmao.files import require_writable, write_atomically
from dmao.progress import bar
from dmao.recognise import TUNED, Heard, Recogniser, Search, check_references
from dmao.scoring import ErrorCount, Normaliser, Segment, align

_log = logging.getLogger(__name__)
_STEPS = {"lm": 0.4, "prior": 0.2, "word": 1.0}  # the first step of each scale
_HALVINGS = 2


@dataclass(frozen=True)
class Trial:
    """One point that was tried."""

    scales: Scales
    count: ErrorCount


@dataclass(frozen=True)
class Tuned:
    """The best point, and all that were tried on the way."""

    search: Search
    count: ErrorCount
    trials: tuple[Trial, ...]


def tune(
    recogniser: Recogniser,
    split: str,
    search: Search,
    normaliser: Normaliser = Normaliser(),  # noqa: B008 - it is frozen
    utterances: int | None = None,
) -> Tuned:
    """Starts at `search.scales` and writes tuned.json into the run's folder; `decode` begins with what stands there.

    From the best point so far each scale is moved up and down by a step; where nothing gets better, the steps are
    halved, twice at most. The model runs once. utterances: no more than that, spread over the split.

    Raises UserError where the search has no scales, the split no utterance, or the folder cannot be written.
    """
    if search.kind != "lexicon":
        raise UserError(f"tune: the {search.kind} search has no scales of words; use the lexicon search")
    require_writable(recogniser.folder / TUNED)
    segments = recogniser.source.segments(split)  # opens it: what is missing is told before a prior is estimated
    check_references(recogniser.source, split, normaliser)
    decoder = recogniser.lexicon_decoder(search, prior=True)
    heard = list(_spread(recogniser.hear(split), len(segments), utterances))
    references = [_reference(segments, h) for h in heard]

    number = itertools.count(1)

    def errors(scales: Scales) -> ErrorCount:
        decoder.rescale(scales)
        texts = (decoder.decode(h.frames) for h in bar(heard, f"trial {next(number)}", "utt"))
        pairs = zip(references, texts, strict=True)
        return sum((align(reference, text, normaliser).count for reference, text in pairs), ErrorCount())

    fixed = () if search.lm else ("lm",)
    trials = tuple(descend(search.scales, errors, fixed))
    best = min(trials, key=lambda trial: trial.count.errors)
    found = Tuned(dataclasses.replace(search, scales=best.scales), best.count, trials)
    content = {"checkpoint": recogniser.checkpoint.name, "split": split, "utterances": len(heard), **_plain(found)}
    write_atomically(recogniser.folder / TUNED, json.dumps(content, indent=1) + "\n")
    return found


def descend(start: Scales, errors: Callable[[Scales], ErrorCount], fixed: Sequence[str] = ()) -> list[Trial]:
    """All points tried from `start` on, downhill. LM and prior scale stay at 0 or above; `fixed` scales do not move."""
    tried = {start: errors(start)}
    best, factor = start, 1.0
    while factor >= 0.5**_HALVINGS:
        for point in _neighbours(best, factor, fixed):
            if point not in tried:
                tried[point] = errors(point)
                moving = (words for name, words in point.described().items() if name.partition("_")[0] not in fixed)
                _log.info("tune: %s: %s", ", ".join(moving), tried[point])
        lowest = min(tried, key=lambda point: tried[point].errors)  # the first one of several
        if tried[lowest].errors < tried[best].errors:
            best = lowest
        else:
            factor /= 2
    return [Trial(scales, count) for scales, count in tried.items()]


def _neighbours(point: Scales, factor: float, fixed: Sequence[str]) -> list[Scales]:
    moved = []
    for name, step in _STEPS.items():
        for sign in (1, -1):
            value = round(getattr(point, name) + sign * factor * step, 6)
            if name not in fixed and (name == "word" or value >= 0):
                moved.append(dataclasses.replace(point, **{name: value}))
    return moved


def _reference(segments: Mapping[str, Segment], heard: Heard) -> str:
    segment = segments.get(heard.id)
    return (segment.reference if segment else "") or heard.reference


def _spread(heard: Iterable[Heard], total: int, most: int | None) -> Iterator[Heard]:
    """About `most` of `total`, from first to last. Frames are copied: views would keep whole batches in memory."""
    if most is None or most >= total:
        return iter(heard)
    kept = {i * total // most for i in range(most)}
    taken = (one for place, one in enumerate(heard) if place in kept)
    return (dataclasses.replace(one, frames=one.frames.copy()) for one in taken)


def _plain(found: Tuned) -> dict[str, Any]:
    return {
        "wer": found.count.percent,
        "search": found.search.to_dict(),
        "trials": [{**asdict(t.scales), "wer": t.count.percent, "errors": t.count.errors} for t in found.trials],
    }
