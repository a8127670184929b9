"""Reference recipes: data, configuration and experiment of one corpus each."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def configs() -> dict[str, Path]:
    """The configurations that come with the package: "librispeech/conformer_256" -> file; those of bases left out."""
    folder = Path(str(resources.files(__package__)))
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.glob("*/*.yaml"))}
    return {name: path for name, path in found.items() if path.stem != "base"}
