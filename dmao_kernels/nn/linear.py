"""Linear layer with a block mask over its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmao_kernels.block_mask import BlockMask, grid_shape, plain_bools
from dmao_kernels.ops.masked_linear import LINEAR_ACTIVATIONS, masked_linear

_MASK_TENSORS = ("row_offsets", "column_ids", "column_offsets", "row_ids")


class MaskedLinear(nn.Linear):
    """nn.Linear, followed by an activation, over the live blocks of its weight.

    Without a mask it has the parameters and the saved state of nn.Linear and takes its place. With a mask,
    dead blocks are neither read nor computed, their gradient is exactly zero, and the saved state has the
    grid of live blocks as `live_blocks`, bool [rows, columns], and the edge of a block as `live_block_size`, int64 [].

    Args:
        in_features: width of the input.
        out_features: rows of the weight; the output is half as wide with "glu".
        bias: whether there is one.
        activation: "none", "silu", "relu", "gelu" or "glu".
        block: edge of the mask's blocks: 16, 32, ..., 128.
        device, dtype: of the parameters.

    Raises:
        ValueError: the activation or the block size is not one of those, or "glu" with odd out_features.
    """

    live_blocks: Tensor | None
    live_block_size: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "none",
        block: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if activation not in LINEAR_ACTIVATIONS:
            names = ", ".join(LINEAR_ACTIVATIONS)
            raise ValueError(f"MaskedLinear: activation must be one of {names}, got {activation!r}")
        if activation == "glu" and out_features % 2:
            raise ValueError(f"MaskedLinear: glu needs an even number of out_features, got {out_features}")
        grid_shape(self.weight, block)  # refuses other block sizes
        self.activation = activation
        self.block = block
        self.register_buffer("live_blocks", None)
        self.register_buffer("live_block_size", None)  # of the saved state; the layer itself reads `block`
        for name in _MASK_TENSORS:
            self.register_buffer(f"_{name}", None, persistent=False)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, mask: BlockMask | None = None, *, activation: str = "none", block: int = 64
    ) -> MaskedLinear:
        """The same layer, sharing the parameters of `linear`; the mask's block size overrides `block`."""
        made = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            activation=activation,
            block=block if mask is None else mask.block,
            device="meta",
        )
        made.weight, made.bias = linear.weight, linear.bias
        made.mask = mask
        return made.train(linear.training)

    @property
    def mask(self) -> BlockMask | None:
        """The live blocks of the weight; None: all. Can be set, on any device; takes over its block size.

        Setting raises ValueError where the mask's grid does not fit the weight.
        """
        if self.live_blocks is None:
            return None
        tensors = (getattr(self, f"_{name}") for name in _MASK_TENSORS)
        return BlockMask(self.block, *self.live_blocks.shape, *tensors)

    @mask.setter
    def mask(self, mask: BlockMask | None) -> None:
        if mask is not None:
            expected = grid_shape(self.weight, mask.block)
            if (mask.rows, mask.columns) != expected:
                raise ValueError(
                    f"MaskedLinear: mask must have {list(expected)} blocks of {mask.block} over the weight "
                    f"{list(self.weight.shape)}, got {[mask.rows, mask.columns]}"
                )
            mask = mask.to(self.weight.device)
            self.block = mask.block
        self.live_blocks = None if mask is None else mask.to_dense()
        self.live_block_size = None if mask is None else torch.full((), mask.block, device=self.weight.device)
        for name in _MASK_TENSORS:
            setattr(self, f"_{name}", None if mask is None else getattr(mask, name))

    def forward(self, x: Tensor, mask: BlockMask | None = None) -> Tensor:
        """Map `x` [..., in_features] to [..., out_features], or half of that with "glu".

        mask: takes the place of the layer's own in this call.
        """
        return masked_linear(x, self.weight, self.bias, mask or self.mask, activation=self.activation)

    def extra_repr(self) -> str:
        """nn.Linear's, with the activation and the share of live blocks."""
        mask = self.mask
        text = super().extra_repr()
        text += "" if self.activation == "none" else f", activation={self.activation}"
        return text + ("" if mask is None else f", block={mask.block}, density={mask.density:.3g}")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *messages: list[str]
    ) -> None:
        """A state with a grid sets the mask, one of a weight without it (nn.Linear's) clears it."""
        name, size_name = prefix + "live_blocks", prefix + "live_block_size"
        grid, size = state_dict.pop(name, None), state_dict.pop(size_name, None)
        mask = None
        if grid is None and size is None:
            if prefix + "weight" in state_dict:
                self.mask = None
        elif (reason := self._why_not_load(prefix, grid, size)) is not None:
            messages[-1].append(reason)
        else:
            state_dict[name], state_dict[size_name] = plain_bools(grid), torch.full((), self.block, device=grid.device)
            self.mask = mask = BlockMask.from_dense(state_dict[name], self.block)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *messages)
        if mask is not None:
            self.mask = mask  # again, as a weight that is assigned may be on another device

    def _why_not_load(self, prefix: str, grid: Any, size: Any) -> str | None:
        """What is wrong with a saved grid or the size of its blocks (not in states of 0.1); None if nothing is."""
        if not isinstance(grid, Tensor) or grid.dtype != torch.bool:
            found = grid.dtype if isinstance(grid, Tensor) else type(grid).__name__
            return f"{prefix}live_blocks must be a bool tensor, got {found}"
        if size is not None and (not isinstance(size, Tensor) or size.dtype != torch.int64 or size.dim() > 0):
            return f"{prefix}live_block_size must be a tensor int64 [], got {size!r}"
        expected, block = grid_shape(self.weight, self.block), self.block if size is None else int(size)
        if tuple(grid.shape) != expected or block != self.block:
            return (
                f"size mismatch for {prefix}live_blocks: {list(expected)} blocks of {self.block} cover the weight "
                f"{list(self.weight.shape)}, the state has {list(grid.shape)} of {block}"
            )
        return None
