"""Ordinary modules, written with nothing but torch.nn, and an elastic model of them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from dmao_kernels.structure import (
    Elastic,
    Plan,
    attention_layout,
    cgmlp_layout,
    feedforward_layout,
    given_plan,
    glu_convolution_layout,
    packed_attention_layout,
    register_family,
)

D = 12


class PlainFeedForward(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.w1 = nn.Linear(D, 24, bias=bias)
        self.dropout = nn.Dropout(0.1)
        self.w2 = nn.Linear(24, D)

    def forward(self, x):
        return self.w2(self.dropout(F.silu(self.w1(self.norm(x)))))


class NormedFeedForward(PlainFeedForward):
    """With a LayerNorm over all hidden units, and a layout of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.LayerNorm(24)

    def component_layout(self):
        layout = feedforward_layout()
        tensors = {**layout.tensors, "inner.weight": "(C u)", "inner.bias": "(C u)"}
        attributes = {**layout.attributes, "inner.normalized_shape": "(C u)"}
        return type(layout)("feedforward", tensors, layout.output, layout.scored, layout.shared, (), attributes), 4

    def forward(self, x):
        return self.w2(self.inner(F.silu(self.w1(self.norm(x)))))


class WeightedNorm(nn.Module):
    """LayerNorm whose statistics weigh each component."""

    def __init__(self, channels, components):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("statistics_weight", torch.ones(components))

    def forward(self, x):
        share = self.statistics_weight.repeat_interleave(x.shape[-1] // len(self.statistics_weight)).to(x)
        share = share / share.sum()
        mean = (x * share).sum(-1, keepdim=True)
        variance = ((x - mean).square() * share).sum(-1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class PlainConvolution(nn.Module):
    """Channels first, BatchNorm, pointwise convolutions as nn.Conv1d."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.pointwise1 = nn.Conv1d(D, 2 * D, 1)
        self.depthwise = nn.Conv1d(D, D, 5, padding=2, groups=D)
        self.depthwise_norm = nn.BatchNorm1d(D)
        self.pointwise2 = nn.Conv1d(D, D, 1)

    def forward(self, x):
        y = F.glu(self.pointwise1(self.norm(x).transpose(1, 2)), dim=1)
        y = F.silu(self.depthwise_norm(self.depthwise(y)))
        return self.pointwise2(y).transpose(1, 2)


class LinearConvolution(nn.Module):
    """Pointwise nn.Linear, weighted norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.pointwise1 = nn.Linear(D, 2 * D)
        self.depthwise = nn.Conv1d(D, D, 5, padding=2, groups=D, bias=False)
        self.depthwise_norm = WeightedNorm(D, 4)
        self.pointwise2 = nn.Linear(D, D)

    def forward(self, x):
        y = F.glu(self.pointwise1(self.norm(x)), dim=-1)
        y = self.depthwise_norm(self.depthwise(y.transpose(1, 2)).transpose(1, 2))
        return self.pointwise2(F.silu(y))


class PlainAttention(nn.Module):
    """Separate projections; keys of 4, values of 5."""

    def __init__(self):
        super().__init__()
        self.heads = 3
        self.norm = nn.LayerNorm(D)
        self.q, self.k, self.v = nn.Linear(D, 12), nn.Linear(D, 12), nn.Linear(D, 15)
        self.out = nn.Linear(15, D)

    def forward(self, x):
        x = self.norm(x)
        q, k, v = (w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.q, self.k, self.v))
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class PackedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 4
        self.norm = nn.LayerNorm(D)
        self.qkv = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatingMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.linear1 = nn.Linear(D, 48)
        self.gate_norm = WeightedNorm(24, 4)
        self.depthwise = nn.Conv1d(24, 24, 3, padding=1, groups=24)
        self.linear2 = nn.Linear(24, D)

    def forward(self, x):
        left, right = F.gelu(self.linear1(self.norm(x))).chunk(2, dim=-1)
        right = self.depthwise(self.gate_norm(right).transpose(1, 2)).transpose(1, 2)
        return self.linear2(left * right)


FAMILIES = {
    PlainFeedForward: feedforward_layout(dropout=("dropout.p",)),
    PlainConvolution: glu_convolution_layout(norm_kind="batch", pointwise="conv1d"),
    LinearConvolution: glu_convolution_layout(),
    PlainAttention: attention_layout(),
    PackedAttention: packed_attention_layout(),
    GatingMLP: cgmlp_layout(),
}
for cls, layout in FAMILIES.items():
    register_family(cls, layout)


class Residual(nn.Module):
    """x + f1(x), + f2(x), ..., then a norm and a classifier."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.norm = nn.LayerNorm(D)
        self.classify = nn.Linear(D, 5)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return self.classify(self.norm(x))


def build(*classes, seed=0, dtype=torch.float32):
    """A model of these modules (all families by default), every parameter and buffer away from its start."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Residual(*(cls() for cls in classes or FAMILIES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer += torch.rand(buffer.shape, generator=generator)
    return model.to(dtype)


def inputs(seed=0, dtype=torch.float32, batch=2, time=7):
    return torch.randn(batch, time, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plan_for(elastic: Elastic, sources, seed=0) -> Plan:
    """The same sources for every module: a function of the number of components, or a tuple."""
    counts = elastic.counts()
    return given_plan({n: sources(c) if callable(sources) else sources for n, c in counts.items()}, counts, seed)


def double_first(components):
    return (0, *range(components))


def drop_second(components):
    return (0, *range(2, components))


def mixed(components):
    """Drop the first, double the last."""
    return (*range(1, components), components - 1)


def train(model, optimizer, steps, seed=0):
    """A few steps towards fixed random targets; the losses."""
    x = inputs(seed, batch=8)
    target = torch.randn(8, 7, 5, generator=torch.Generator().manual_seed(seed + 1))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
