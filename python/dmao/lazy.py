"""A record that lies on the device until somebody looks at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Lazy:
    """Stands for what ``read`` returns: any attribute, or ``str``, reads it, once."""

    def __init__(self, read: Callable[[], Any]):
        self._read = read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask for these
            raise AttributeError(name)
        return getattr(self._value(), name)

    def __str__(self) -> str:
        return str(self._value())

    def _value(self) -> Any:
        if "_found" not in self.__dict__:
            self._found = self._read()
        return self._found
