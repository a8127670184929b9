"""What is made of a compacted model with other people's tools: ONNX, safetensors; adapters beside an elastic model."""

import pytest
import torch

from dmao_kernels import compact
from tests.plain.test_compact import small_conformer

MISSING = "{} is not installed (make test-integrations)"


def test_onnx(tmp_path):
    """Other batch, other length than the example; the outputs of onnxruntime."""
    pytest.importorskip("onnxscript", reason=MISSING.format("onnxscript"))
    onnxruntime = pytest.importorskip("onnxruntime", reason=MISSING.format("onnxruntime"))
    made = compact(small_conformer())
    example = torch.randn(2, 50, 20), torch.tensor([50, 30])
    batch, frames = torch.export.Dim("batch"), torch.export.Dim("frames", min=4)
    path = tmp_path / "model.onnx"
    shapes = ({0: batch, 1: frames}, {0: batch})
    torch.onnx.export(made, example, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    features, lengths = torch.randn(3, 64, 20), torch.tensor([64, 33, 20])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, dict(zip(names, (features.numpy(), lengths.numpy()), strict=True)))
    expected, out_lengths = made(features, lengths)
    torch.testing.assert_close(torch.from_numpy(found[0]), expected.detach(), rtol=1e-4, atol=1e-4)
    assert found[1].tolist() == out_lengths.tolist()


def test_safetensors(tmp_path):
    torch_files = pytest.importorskip("safetensors.torch", reason=MISSING.format("safetensors"))
    made = compact(small_conformer())
    torch_files.save_model(made, tmp_path / "model.safetensors")
    saved = torch_files.load_file(tmp_path / "model.safetensors")
    assert saved.keys() == made.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in made.state_dict().items())
