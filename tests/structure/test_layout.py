"""Patterns: the grammar, the sizes, and the one triple behind them."""

import pytest
import torch

from dmao_kernels.layout import ComponentLayout, Pattern
from dmao_kernels.structure import feedforward_layout


@pytest.mark.parametrize(
    ("text", "shape", "triple"),
    [
        ("(C u) d", (12, 5), (1, 4, 15)),
        ("(C u)", (12,), (1, 4, 3)),
        ("d (C u)", (5, 12), (5, 4, 3)),
        ("(two C u) d", (24, 5), (2, 4, 15)),
        ("(three C k) d", (36, 5), (3, 4, 15)),
        ("(C u) one k", (12, 1, 7), (1, 4, 21)),
        ("C", (4,), (1, 4, 1)),
        ("d (two C u) e", (3, 16, 2), (6, 4, 4)),
    ],
)
def test_view_is_the_same_memory_by_component(text, shape, triple):
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    view = Pattern(text).view(tensor, 4)
    assert tuple(view.shape) == triple
    assert view.data_ptr() == tensor.data_ptr()
    sizes = Pattern(text).infer(shape, 4, {})
    assert Pattern(text).shape(4, sizes) == shape
    assert Pattern(text).triple(4, sizes) == triple


def test_view_of_glu_rows_holds_value_and_gate_of_the_same_channels():
    rows = torch.arange(16)  # two halves of C=4 components of u=2 channels
    assert Pattern("(two C u)").view(rows, 4)[:, 1].flatten().tolist() == [2, 3, 10, 11]


def test_empty_module_needs_remembered_sizes():
    empty = torch.empty(0, 5)
    with pytest.raises(ValueError, match="sizes of \\['u'\\] cannot be read off"):
        Pattern("(C u) d").view(empty, 0)
    assert Pattern("(C u) d").view(empty, 0, {"u": 3}).shape == (1, 0, 15)


def test_view_refuses_to_copy():
    with pytest.raises(ValueError, match="must be contiguous"):
        Pattern("d (C u)").view(torch.empty(12, 5).t(), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(C u d", r"'\(' is not closed"),
        ("C u) d", r"'\)' closes nothing"),
        ("(C (u)) d", "cannot be nested"),
        ("u d", "must stand exactly once, found 0"),
        ("(C u) C", "must stand exactly once, found 2"),
        ("(C u) 3", "'3' is not a name"),
        ("() C", r"'\)' closes nothing"),
        ("(C, u)", "'C,' is not a name"),
    ],
)
def test_wrong_patterns(text, message):
    with pytest.raises(ValueError, match=message):
        Pattern(text)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("(C u) d", (10, 5), r"axis \(C u\) has 10 entries, which is not divisible by 4 \(C=4\)"),
        ("(two C u) d", (12, 5), "not divisible by 8"),
        ("(C u) one k", (12, 2, 7), r"axis \(one\) has 2 entries, which is not 1"),
        ("(C u)", (12, 5), "has 1 axes, the tensor .* has 2"),
    ],
)
def test_pattern_that_does_not_fit(text, shape, message):
    with pytest.raises(ValueError, match=message):
        Pattern(text).infer(shape, 4, {})


def test_layout_agrees_on_sizes_across_tensors():
    layout = feedforward_layout()
    assert layout.infer({"w1.weight": (12, 5), "w2.weight": (6, 12)}, 4) == {"u": 3, "d": 5, "e": 6}
    with pytest.raises(ValueError, match=r"layout feedforward: w2.weight: .*\[6, 16\].*16 entries, which is not 12"):
        layout.infer({"w1.weight": (12, 5), "w2.weight": (6, 16)}, 4)


def test_layout_learns_a_size_from_a_later_tensor():
    layout = ComponentLayout("mine", {"a": "(C u v) d", "b": "(C u)"}, ("a",), "a")
    assert layout.infer({"a": (24, 5), "b": (8,)}, 4) == {"u": 2, "v": 3, "d": 5}
    with pytest.raises(ValueError, match=r"a: no tensor tells the size of \['u', 'v'\]"):
        layout.infer({"a": (24, 5)}, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": ("b",)}, "output tensor 'b' is not among"),
        ({"output": ()}, "output must name at least one"),
        ({"scored": "b"}, "scored tensor 'b' is not among"),
        ({"scored": ("a",)}, r"scored must be the name of one tensor, got \('a',\)"),
        ({"output": "a"}, r"output must be a tuple of names, \('a',\), got 'a'"),
        ({"shared": "b"}, "shared must be a tuple of names"),
        ({"dropout": "p"}, "dropout must be a tuple of names"),
        ({"shared": ("a",)}, "cannot be shared and owned"),
        ({"attributes": {"n": "(C u) d"}}, "must name one axis"),
        ({"tensors": {"a": "u d"}}, "layout mine: a: pattern 'u d'"),
    ],
)
def test_wrong_layouts(fields, message):
    good = {"family": "mine", "tensors": {"a": "(C u)"}, "output": ("a",), "scored": "a"}
    with pytest.raises(ValueError, match=message):
        ComponentLayout(**{**good, **fields})
