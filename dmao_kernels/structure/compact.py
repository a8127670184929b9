"""compact: a trained elastic model as plain PyTorch modules of the final widths."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrize

from dmao_kernels import nn as layers
from dmao_kernels import plain
from dmao_kernels.nn.e_branchformer import MergedBranches
from dmao_kernels.nn.residual import ResidualBlock
from dmao_kernels.structure.empty import EmptyForward
from dmao_kernels.structure.gates import fold_gate
from dmao_kernels.structure.places import Gate
from dmao_kernels.structure.slots.storage import LIVE
from dmao_kernels.swaps.registry import without_swap

Plain = Callable[[nn.Module], nn.Module]
_PLAIN: dict[type[nn.Module], Callable[..., nn.Module]] = {}


def register_plain(cls: type[nn.Module], make: Callable[..., nn.Module]) -> None:
    """Let `compact` replace modules of exactly the class ``cls``.

    make: (module, plain) -> the plain module. It may take over parameters and modules of ``module``, which is a copy
        already; ``plain(part)`` is what becomes of a part.
    """
    _PLAIN[cls] = make


def compact(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in plain PyTorch modules of the present widths, for deployment.

    Nothing in it needs this library's operators, and nothing is elastic any more. Layers of dmao_kernels.nn become
    those of dmao_kernels.plain, made of the same nn.Linear, nn.Conv1d and nn.LayerNorm under the same names; they take
    padded rows and a mask that leaves each utterance at least one frame. Gates and block masks are multiplied into the
    weights, `accelerate` is undone; hooks of layers that are replaced are left out. Modules without components become
    modules without parameters that return zeros; blocks of dmao_kernels.nn leave them out. Everything else is copied as
    it is. The function is that of ``model`` to rounding, the mode (train, eval) stays.

    What torch.export or torch.onnx.export make of the result runs where this library is not installed; pickles of the
    result itself do not. A forward of your own that calls the operations of dmao_kernels is exported under
    `dmao_kernels.use_backend("reference")`, where they are PyTorch's.

    Raises ValueError for a layer of this library that it cannot replace, such as a class derived from one, and for a
    model in slots storage.
    """
    made: dict[int, nn.Module] = {}
    if in_slots := [name for name, module in model.named_modules() if module._buffers.get(LIVE) is not None]:
        raise ValueError(f"compact: {in_slots[0] or 'the model'} is in slots storage: call Elastic.to_tight() first")

    def convert(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            made[id(module)] = _convert(module, convert)
        return made[id(module)]

    # The dictionary keeps only ids: the copy must live as long as it does.
    source = copy.deepcopy(model)
    result = convert(source)
    for name, module in result.named_modules():
        if any(
            c.__module__.startswith("dmao_kernels.") and c.__module__ != plain.__name__ for c in type(module).__mro__
        ):
            raise ValueError(
                f"compact: {name or 'the model'} ({type(module).__name__}) is made of this library's operations: "
                "tell how to replace it with dmao_kernels.structure.compact.register_plain"
            )
    return result


def _convert(module: nn.Module, convert: Plain) -> nn.Module:
    if isinstance(answer := module.__dict__.get("forward"), EmptyForward):
        internal = nn.Module().__dict__.keys() | {"forward"}
        flags = {name: value for name, value in vars(module).items() if name not in internal}
        return plain.Empty(answer, flags).train(module.training)
    for name in _gated(module):
        fold_gate(module, name)
    module.__class__ = without_swap(type(module))
    if (make := _PLAIN.get(type(module))) is not None:
        return make(module, convert).train(module.training)
    for name, child in module._modules.items():  # named_children would pass over the second place of a module
        module._modules[name] = None if child is None else convert(child)
    return module


def _gated(module: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(module):
        return []
    chains = module.parametrizations.items()  # type: ignore[union-attr, operator]
    return [name for name, chain in chains if all(isinstance(each, Gate) for each in chain)]


def _linear(module: layers.MaskedLinear) -> nn.Linear:
    """Without the activation; dead blocks are zeros."""
    made = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    made.weight, made.bias = module.weight, module.bias
    if (mask := module.mask) is not None:
        made.weight = nn.Parameter(module.weight.detach() * mask.elements(*module.weight.shape))
    return made


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "glu": lambda: nn.GLU(-1),
}


def _masked_linear(module: layers.MaskedLinear, convert: Plain) -> nn.Module:
    linear = _linear(module)
    return linear if module.activation == "none" else nn.Sequential(linear, _ACTIVATIONS[module.activation]())


def _component_norm(module: layers.ComponentLayerNorm, convert: Plain) -> nn.Module:
    if module.unequal_weights() is not None:
        return plain.WeightedLayerNorm(module.weight, module.bias, module.shares(), module.eps)
    made = nn.LayerNorm(module.weight.numel(), module.eps, device="meta")
    made.weight, made.bias = module.weight, module.bias
    return made


def _parts(module: nn.Module, convert: Plain, *names: str) -> dict[str, nn.Module]:
    return {name: convert(getattr(module, name)) for name in names}


def _feed_forward(module: layers.FeedForward, convert: Plain) -> nn.Module:
    return plain.FeedForward(module.dropout, _parts(module, convert, "norm", "w1", "w2"), module.activation)


def _convolution(module: layers.ConvolutionModule, convert: Plain) -> nn.Module:
    names = ("norm", "pointwise1", "depthwise", "depthwise_norm", "pointwise2")
    return plain.Convolution(module.dropout, _parts(module, convert, *names), module.chunk)


def _gating_mlp(module: layers.ConvolutionalGatingMLP, convert: Plain) -> nn.Module:
    parts = _parts(module, convert, "norm", "gate_norm", "depthwise", "linear2")
    return plain.GatingMLP(module.dropout, {**parts, "linear1": _linear(module.linear1)}, module.chunk)


def _attention(module: layers.SelfAttention, convert: Plain) -> nn.Module:
    parts = _parts(module, convert, "norm", "q", "k", "v", "out")
    kind, extra = plain.Attention, {}
    if isinstance(module, layers.RelPosSelfAttention):
        kind = plain.SinusoidAttention if module.radius is None else plain.TableAttention
        extra = dict(module.named_parameters(recurse=False))
        parts |= _parts(module, convert, "pos") if module.radius is None else {}
    visible = {"window": module.window, "chunk": module.chunk}
    made = kind(module.dropout, parts, module.heads, visible, module.attention_dropout)
    for name, parameter in extra.items():
        made.register_parameter(name, parameter)
    return made


def _or_empty(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Branches without components contribute nothing."""
    return lambda module, convert: (
        plain.Empty(EmptyForward(None, returns=1), {}) if module.empty else make(module, convert)
    )


def _merge(module: MergedBranches, convert: Plain) -> nn.Module:
    names = ("attention", "cgmlp", "depthwise", "linear")
    return plain.Merge(module.dropout, _parts(module, convert, *names), module.chunk)


def _block(module: ResidualBlock, convert: Plain) -> nn.Module:
    live = {name: scale for name, scale in module.scales.items() if not getattr(module, name).empty}
    return plain.Block(_parts(module, convert, *live), live, convert(module.norm))


register_plain(layers.MaskedLinear, _masked_linear)
register_plain(layers.ComponentLayerNorm, _component_norm)
register_plain(layers.FeedForward, _or_empty(_feed_forward))
register_plain(layers.ConvolutionModule, _or_empty(_convolution))
register_plain(layers.ConvolutionalGatingMLP, _or_empty(_gating_mlp))
register_plain(layers.SelfAttention, _or_empty(_attention))
register_plain(layers.RelPosSelfAttention, _or_empty(_attention))
register_plain(MergedBranches, _or_empty(_merge))
register_plain(layers.ConformerBlock, _block)
register_plain(layers.EBranchformerBlock, _block)
