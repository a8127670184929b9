"""Docstrings as Markdown: sections ("Args:") become headings, arguments ("name: what it is") become lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

TITLES = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises", "Yields": "Yields"}
SECTION = re.compile(rf"({'|'.join(TITLES)}):(?: +(.*))?")
ITEM = re.compile(r"(\w+(?:, \w+)*): +(.*)")

DOCUMENT = re.compile(r"\bdocs/([A-Z_]+\.md)")  # as docstrings name it; the pages of the API are one folder below


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that is shown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, names_of(obj))


def names_of(obj: griffe.Object) -> set[str]:
    """What the short form of a list, without "Args:" above it, may be about: parameters and attributes."""
    names = {parameter.name for parameter in getattr(obj, "parameters", ())}
    for member in obj.members.values() if obj.is_class else ():
        names |= {member.name} | ({p.name for p in member.parameters} if member.name == "__init__" else set())
    return names


def to_markdown(text: str, names: set[str]) -> str:
    """The docstring `text` of something that has these parameters and attributes."""
    return DOCUMENT.sub(r"[\1](../\1)", "\n".join(_lines(text, names)) + "\n")


def _lines(text: str, names: set[str]) -> Iterator[str]:
    section, listed = "", False
    for line in text.splitlines():
        if heading := SECTION.fullmatch(line):
            section, listed = heading[1], False
            yield from ("", f"**{TITLES[section]}**", "", heading[2] or "")
            continue
        if section and line and not line.startswith(" "):
            section, listed = "", False
            yield ""
        line = line.removeprefix("    ") if section else line
        item = ITEM.fullmatch(line)
        if item and (section in ("Args", "Raises") or names.issuperset(item[1].split(", "))):
            yield from (*([] if listed else [""]), f"- `{item[1]}`: {item[2]}")
            listed = True
            continue
        if listed and line and not line.startswith(" "):  # ordinary text behind a list
            listed = False
            yield ""
        yield line
