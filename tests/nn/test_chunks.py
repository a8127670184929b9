"""Chunks: what a frame sees, convolution within them against one that pads each chunk, rows cut beforehand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmao_kernels.nn import ChunkRows, ConformerBlock, ConvolutionalGatingMLP, ConvolutionModule, EBranchformerBlock

LENGTHS = (7, 0, 1, 4, 6)


def test_rows_of_chunks() -> None:
    chunks = ChunkRows.of(torch.tensor([5, 0, 2]), 2, 3)
    assert chunks.source.tolist() == [0, 1, 0, 1, 2, 3, 1, 2, 3, 4, 5, 6]
    assert chunks.offsets.tolist() == [0, 2, 6, 10, 12]
    assert chunks.own.tolist() == [0, 1, 4, 5, 9, 10, 11]
    assert chunks.source[chunks.own].tolist() == list(range(7))
    padded = ChunkRows.of(torch.tensor([2, 1]), 2, 3, frames=4)
    assert padded.source.tolist() == [0, 1, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_convolution_against_zeros_behind_every_chunk(size: int) -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(8, 5, chunk=size, components=2).eval()
    x = torch.randn(1, 7, 8)
    y = F.glu(F.linear(module.norm(x), module.pointwise1.weight, module.pointwise1.bias), -1)[0]
    expected = []
    for frame in range(7):
        around = torch.zeros(5, 8)
        for tap in range(5):
            seen = frame + tap - 2
            if 0 <= seen < min(7, (frame // size + 1) * size):
                around[tap] = y[seen]
        expected.append((around * module.depthwise.weight[:, 0].T).sum(0) + module.depthwise.bias)
    expected = F.silu(module.depthwise_norm(torch.stack(expected)))
    expected = F.linear(expected, module.pointwise2.weight, module.pointwise2.bias)
    torch.testing.assert_close(module(x)[0], expected)


BLOCKS = {
    "conformer": lambda **k: ConformerBlock(16, 2, head_dim=8, expansion=2, kernel=7, **k),
    "e-branchformer": lambda **k: EBranchformerBlock(16, 2, head_dim=8, kernel=7, merge_kernel=5, **k),
}


@pytest.mark.parametrize("positions", ["none", "relative"])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("left", [0, 1, None])
def test_no_frame_depends_on_what_is_behind_its_chunk(name: str, positions: str, left: int | None) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name](positions=positions, chunk=(3, left)).eval()
    x = torch.randn(1, 11, 16, requires_grad=True)
    y = block(x)
    for frame in range(11):
        (grad,) = torch.autograd.grad(y[0, frame].sum() + y[0, frame].square().sum(), x, retain_graph=True)
        seen = grad[0].abs().sum(1) > 0
        end = min(11, (frame // 3 + 1) * 3)
        assert not seen[end:].any()
        assert seen[frame // 3 * 3 : end].all()  # the whole of its own chunk


@pytest.mark.parametrize("name", BLOCKS)
def test_a_chunk_as_long_as_the_utterance_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    whole = BLOCKS[name]().eval()
    chunked = BLOCKS[name](chunk=(11, 0)).eval()
    chunked.load_state_dict(whole.state_dict())
    x = torch.randn(2, 11, 16)
    torch.testing.assert_close(chunked(x), whole(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_cut_beforehand(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name](chunk=(3, 1)).eval()
    lengths = torch.tensor(LENGTHS)
    x, offsets = torch.randn(int(lengths.sum()), 16), F.pad(lengths.cumsum(0), (1, 0)).int()
    expected = block(x, offsets=offsets)
    for reach in (block.reach, block.reach + 4):
        chunks = ChunkRows.of(lengths, 3, reach).to(x.device)
        torch.testing.assert_close(block(x, offsets=offsets, chunks=chunks), expected, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    chunks = ChunkRows.of(lengths, 3, block.reach)
    torch.testing.assert_close(compiled(x, offsets=offsets, chunks=chunks), expected, rtol=1e-5, atol=1e-5)
    for wrong in (ChunkRows.of(lengths, 2, 9), ChunkRows.of(lengths, 3, block.reach - 1)):
        with pytest.raises(ValueError, match=r"chunks must be of 3 frames that reach \d back, got \d and \d"):
            block(x, offsets=offsets, chunks=wrong)


def test_rows_cut_beforehand_must_be_those_of_the_batch() -> None:
    torch.manual_seed(0)
    block = BLOCKS["conformer"](chunk=(2, None)).eval()
    lengths, x = torch.tensor([4, 6]), torch.randn(2, 6, 16)
    mask, reach = torch.arange(6) < lengths[:, None], block.reach
    padded, packed = ChunkRows.of(lengths, 2, reach, 6), ChunkRows.of(lengths, 2, reach)
    expected = block(x, mask)
    torch.testing.assert_close(block(x, mask, chunks=padded.to(x.device)), expected, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask, chunks=padded), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"chunks must be of rows that are padded \[B, T\] = \[2, 6\], got packed"):
        block(x, mask, chunks=packed)
    with pytest.raises(ValueError, match=r"padded \[B, T\] = \[2, 5\], got padded \[B, T\] = \[2, 6\]"):
        block(x[:, :5], chunks=padded)
    with pytest.raises(ValueError, match="chunks must be of 12 rows, got 10"):
        block(x, chunks=padded)
    offsets = torch.tensor([0, 4, 10], dtype=torch.int32)
    with pytest.raises(ValueError, match="chunks must be of rows that are packed, got padded"):
        block(x.flatten(0, 1)[:10], offsets=offsets, chunks=padded)
    with pytest.raises(ValueError, match="chunks must be of 10 rows, got 9"):
        block(x.flatten(0, 1)[:10], offsets=offsets, chunks=ChunkRows.of(torch.tensor([4, 5]), 2, reach))


@pytest.mark.parametrize(("lengths", "frames", "most"), [([7, 6], 6, 6), ([3, -1], 6, 6), ([3, -1], None, 2)])
def test_lengths_fit_the_rows(lengths: list[int], frames: int | None, most: int) -> None:
    with pytest.raises(ValueError, match=rf"ChunkRows: lengths must be in \[0, {most}\], got \[{lengths[0]}, "):
        ChunkRows.of(torch.tensor(lengths), 4, 2, frames)
    assert ChunkRows.of(torch.tensor([], dtype=torch.int64), 4, 2, frames).offsets.tolist() == [0]


@pytest.mark.parametrize("layer", [ConvolutionModule, lambda d, **k: ConvolutionalGatingMLP(d, 6 * d, **k)])
def test_chunk_must_be_positive(layer) -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        layer(8, chunk=0)
