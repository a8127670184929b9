"""What differs between the site and the repository: pages outside of docs/, wide pages, pipes in tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
WIDE = ("PERFORMANCE.md",)  # whose tables need the place of the table of contents
CODE = re.compile(r"`[^`\n]+`")  # in which tables of GitHub's need a backslash before a pipe, those here show it


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, the licence and the examples under their names in the repository."""
    for path in (*(ROOT / name for name in (*PAGES, "LICENSE")), *sorted((ROOT / "examples").glob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """On the site docs/ and the root of the repository are one folder."""
    name = page.file.src_uri
    if name in WIDE:
        page.meta["hide"] = ["toc"]
    markdown = CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)
    if name in PAGES:
        return markdown.replace("](docs/", "](")
    return markdown if "/" in name else markdown.replace("](../", "](")
