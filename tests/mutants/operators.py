"""Small faults in Python source: where one can be planted, and the code with it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor",
         "argmax": "argmin", "argmin": "argmax", "amin": "amax", "amax": "amin"}  # fmt: skip
UNWRAPPED = {"reversed", "sorted", "set", "dict"}
NOT_CODE = {"annotation", "returns", "decorator_list", "type_params"}
NAMED = (ast.FunctionDef, ast.ClassDef)
SHOWN = (ast.expr, ast.keyword, ast.Assign, ast.AnnAssign, ast.AugAssign)  # around a constant


@dataclass(frozen=True)
class _Site:
    """A node, and what holds it: ``parent.field``, at ``index`` where that is a list."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    statement: ast.stmt
    where: str
    inside: bool

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node

    @contextmanager
    def holding(self, node: ast.AST) -> Iterator[None]:
        """The tree with another node here."""
        self.put(ast.copy_location(node, self.node))
        try:
            yield
        finally:
            self.put(self.node)


@dataclass(frozen=True)
class Mutant:
    """One fault. ``where`` is the function or class that has it; before and after are to name it whatever its line."""

    file: str
    where: str
    operator: str
    before: str
    after: str
    site: _Site
    node: ast.AST
    tree: ast.Module

    @property
    def line(self) -> int:
        return getattr(self.site.node, "lineno", self.site.statement.lineno)

    @property
    def lines(self) -> range:
        """Those of the statement, without its body."""
        statement = self.site.statement
        body = getattr(statement, "body", None)
        return range(statement.lineno, body[0].lineno if body else (statement.end_lineno or statement.lineno) + 1)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.file, self.where, self.before, self.after

    def code(self, filename: str) -> CodeType:
        """The module with the fault."""
        with self.site.holding(self.node):
            return compile(ast.fix_missing_locations(self.tree), filename, "exec")

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.where}: {self.operator}: {self.before}  ->  {self.after}"


def mutants(source: str, file: str) -> list[Mutant]:
    """All faults of a module, in order."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    times: Counter[tuple[str, str, str]] = Counter()
    for site in list(_sites(tree, tree.body[0], "", False)):
        for operator, node in _faults(site):
            before = _text(site)
            with site.holding(node):
                after = _text(site)
            times[site.where, before, after] += 1
            if (n := times[site.where, before, after]) > 1:
                after += f"  # {n}"
            found.append(Mutant(file, site.where, operator, before, after, site, node, tree))
    return found


def _text(site: _Site) -> str:
    """What stands at a site now, and around a constant what tells it from others."""
    at, parent = site.index or 0, site.parent
    node = getattr(parent, site.field) if site.index is None else getattr(parent, site.field)[at]
    if isinstance(parent, ast.arguments):
        named = parent.kwonlyargs if site.field == "kw_defaults" else [*parent.posonlyargs, *parent.args]
        return f"{named[at if site.field == 'kw_defaults' else at - len(parent.defaults)].arg}={_unparsed(node)}"
    return _unparsed(parent if isinstance(site.node, ast.Constant) and isinstance(parent, SHOWN) else node)


def _unparsed(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def _sites(node: ast.AST, statement: ast.stmt, where: str, inside: bool) -> Iterator[_Site]:
    """Every node below this one that is code."""
    for field, value in ast.iter_fields(node):
        if field in NOT_CODE:
            continue
        within = inside or (isinstance(node, ast.FunctionDef) and field == "body")
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or _is_not_code(child):
                continue
            at = child if isinstance(child, ast.stmt) else statement
            name = f"{where}.{child.name}".lstrip(".") if isinstance(child, NAMED) else where
            yield _Site(child, node, field, index if isinstance(value, list) else None, at, name, within)
            if not isinstance(child, ast.Raise):  # what an error says is for tests of messages
                yield from _sites(child, at, name, within)


def _is_not_code(node: ast.AST) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    types = isinstance(node, ast.If) and "TYPE_CHECKING" in _unparsed(node.test)
    strict = isinstance(node, ast.keyword) and node.arg == "strict"  # an assertion
    return text or types or strict or isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr)


def _faults(site: _Site) -> Iterator[tuple[str, ast.AST]]:
    """The nodes that may stand there instead, and by which operator."""
    node = site.node
    if isinstance(node, ast.stmt):
        yield from _of_statement(node, site.inside)
    elif isinstance(node, ast.expr):
        if site.field in ("test", "ifs") and not _has_an_opposite(node):
            yield "negation", ast.UnaryOp(ast.Not(), node)
        if isinstance(site.parent, ast.Slice) and not isinstance(node, ast.Constant):
            yield "bound", ast.BinOp(node, ast.Add() if site.field == "lower" else ast.Sub(), ast.Constant(1))
        if site.inside or not isinstance(node, ast.BinOp):  # outside of functions they make types
            yield from _of_expression(node)


def _has_an_opposite(node: ast.expr) -> bool:
    """Whether another operator makes its negation anyway."""
    opposites = ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
    return isinstance(node, ast.UnaryOp) or (
        isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], opposites)
    )


def _of_statement(node: ast.stmt, inside: bool) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    if isinstance(node, ast.Return) and node.value and ast.unparse(node.value) not in ("None", "False"):
        yield "return", ast.Return(ast.Constant(None))
    removable = isinstance(node, ast.Expr | ast.Raise | ast.AugAssign | ast.Continue | ast.Break) or (
        isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)
    )
    if removable and inside:
        yield "removal", ast.Pass()


def _of_expression(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops = [*node.ops[:i], COMPARISONS[type(op)](), *node.ops[i + 1 :]]
            yield "comparison", ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield "logic", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield "sign", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield from (("constant", ast.Constant(value)) for value in _other_values(node.value))
    elif isinstance(node, ast.Call):
        yield from _of_call(node)


def _other_values(value: float) -> list[float]:
    if isinstance(value, bool):
        return [not value]
    return [value + 1, value - 1] if value > 0 else [value + 1]


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    function = node.func
    if isinstance(function, ast.Name):
        if (other := CALLS.get(function.id)) is not None:
            yield "call", ast.Call(ast.Name(other, ast.Load()), node.args, node.keywords)
        if function.id in UNWRAPPED and node.args:
            yield "call", node.args[0]
    elif isinstance(function, ast.Attribute) and (other := CALLS.get(function.attr)) is not None:
        yield "call", ast.Call(ast.Attribute(function.value, other, ast.Load()), node.args, node.keywords)
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None and not _is_not_code(keyword):
            yield "keyword", ast.Call(function, node.args, [*node.keywords[:i], *node.keywords[i + 1 :]])
