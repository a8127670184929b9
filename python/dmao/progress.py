"""Progress bars: on stderr, on a terminal only, gone when their loop is done."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def bar(items: Iterable[T], what: str, unit: str, total: int | None = None, *, shown: bool = True) -> Iterable[T]:
    """`items`, with a bar that shows how many have been taken. shown: False for none at all."""
    hidden = None if shown else True  # None: unless stderr is a terminal
    return tqdm(items, desc=what, unit=unit, total=total, disable=hidden, file=sys.stderr, leave=False)
