"""A model by the name of what makes it, and example inputs by their shapes: how the command line is given a model."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dmao.config import apply_overrides
from dmao.errors import UserError, first_line


def build_model(name: str, overrides: Iterable[str] = ()) -> nn.Module:
    """What ``package.module:callable`` returns, called with the ``key=value`` of ``overrides`` (values are YAML).

    Modules of the present folder are found as well. Raises UserError where there is no such thing, or no model comes
    out of it.
    """
    module_name, _, path = name.partition(":")
    arguments = apply_overrides({}, overrides)
    sys.path.insert(0, os.getcwd())
    try:
        model = operator.attrgetter(path)(importlib.import_module(module_name))(**arguments)
    except Exception as error:
        raise UserError(f"inspect: {name} makes no model: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(model, nn.Module):
        raise UserError(f"inspect: {name} must return an nn.Module, got {type(model).__name__}")
    return model


def example_input(shape: str) -> Tensor:
    """Of "2,100,80" random numbers of that shape; of "int:2,100" whole numbers, all one (tokens, lengths)."""
    kind, _, sizes = shape.rpartition(":")
    try:
        if kind not in ("", "int"):
            raise ValueError
        size = [int(n) for n in sizes.split(",")]
        return torch.ones(size, dtype=torch.int64) if kind else torch.randn(size)
    except (ValueError, RuntimeError):
        raise UserError(f"inspect: an example must look like 2,100,80 or int:2,100, got '{shape}'") from None
