"""The stub of the native module says what the module has."""

from __future__ import annotations

import ast
import typing
from pathlib import Path

import pytest

import dmao_kernels

STUB = Path(dmao_kernels.__file__).parent / "_host.pyi"

pytestmark = pytest.mark.skipif(dmao_kernels.cpu_capability() is None, reason="no native library")


def test_functions() -> None:
    from dmao_kernels import _host

    nodes = ast.parse(STUB.read_text()).body
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
    assert functions.keys() == {name for name in vars(_host) if not name.startswith("__")}
    assert all(ast.unparse(node.args) == "" for node in functions.values())
    with pytest.raises(TypeError):
        _host.build_info(None)
    assert ast.unparse(functions["cpu_capability"].returns) == "str"
    assert type(_host.cpu_capability()) is str


def test_build_info() -> None:
    from dmao_kernels import _host

    scope: dict[str, typing.Any] = {}
    exec(compile(STUB.read_text(), STUB.name, "exec"), scope)
    declared = typing.get_type_hints(scope["_BuildInfo"])
    found = _host.build_info()
    assert declared.keys() == found.keys()
    assert [
        name
        for name, value in found.items()
        if type(value) is not (typing.get_origin(declared[name]) or declared[name])
    ] == []
    assert {type(isa) for isa in found["isas"]} == {str}
