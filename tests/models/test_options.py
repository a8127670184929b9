"""Streaming by chunks, and intermediate CTC, of both encoders, with and without positions."""

from __future__ import annotations

import pytest
import torch
from dmao.models import ConformerConfig, ConformerCTC, ctc_loss, model_loss
from dmao.randomness import derive_seed
from dmao.step import TrainingStep, build_model, make_controller, make_optimizer

from dmao_kernels import compact
from dmao_kernels.structure import Elastic
from tests.trainer.tiny import TinySource, tiny_config

SMALL = {
    "outputs": 7,
    "inputs": 20,
    "width": 16,
    "blocks": 3,
    "head_dim": 8,
    "expansion": 2,
    "kernel": 5,
    "front_channels": (3, 4, 5, 4),
    "dropout": 0.0,
    "output_dropout": 0.0,
}
FORMS = [(block, positions) for block in ("conformer", "e_branchformer") for positions in ("none", "relative")]


def make(block: str, positions: str = "none", **changes: object) -> ConformerCTC:
    torch.manual_seed(0)
    return ConformerCTC(ConformerConfig.from_dict({**SMALL, "block": block, "positions": positions, **changes}))


class TestStreaming:
    @pytest.mark.parametrize(("block", "positions"), FORMS)
    @pytest.mark.parametrize(("pooling", "left"), [((2, 2), None), ((3, 1), 1)])
    def test_no_output_depends_on_audio_behind_its_chunk_and_the_front_end(self, block, positions, pooling, left):
        model = make(block, positions, chunk=3, left_chunks=left, time_pooling=pooling).eval()
        step, frames = model.config.subsampling, 60
        x = torch.randn(1, frames, 20, requires_grad=True)
        y, _ = model(x, torch.tensor([frames]))
        last = []
        for frame in range(y.shape[1]):
            (grad,) = torch.autograd.grad(y[0, frame, 1], x, retain_graph=True)
            seen = grad[0].abs().sum(1).nonzero()[:, 0]
            end = min(frames, (frame // 3 + 1) * 3 * step + model.config.front_lookahead)
            assert int(seen.max()) < end
            last.append(int(seen.max()) == end - 1)
        assert any(last)  # no less than that is promised

    @pytest.mark.parametrize(("block", "positions"), FORMS)
    def test_what_was_said_stays(self, block, positions):
        """Outputs of whole chunks, for audio up to what they see, are those of the whole utterance."""
        model = make(block, positions, chunk=2, left_chunks=2).eval()
        x = torch.randn(1, 64, 20)
        whole, _ = model(x, torch.tensor([64]))
        for chunks in (1, 3, 5):
            heard = chunks * 8 + 8  # a multiple of the subsampling beyond the look-ahead of 6
            part, _ = model(x[:, :heard], torch.tensor([heard]))
            torch.testing.assert_close(part[:, : 2 * chunks], whole[:, : 2 * chunks], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("block", "positions"), FORMS)
    def test_padding_never_matters_and_gradients_reach_everything(self, block, positions):
        model, lengths = make(block, positions, chunk=3), torch.tensor([50, 33, 4])
        x = torch.randn(3, 50, 20)
        for row, length in enumerate(lengths.tolist()):
            x[row, length:] = torch.nan
        y, _ = model(x, lengths)
        alone, _ = model(x[1:2, :33], lengths[1:2])
        torch.testing.assert_close(y[1:2, :8], alone, rtol=1e-5, atol=1e-5)
        y.square().sum().backward()
        # Softmax does not see what all keys have in common.
        rest = {n: p.grad for n, p in model.named_parameters() if not n.endswith("k.bias")}
        assert all(g is not None and g.abs().sum() > 0 for g in rest.values())

    @pytest.mark.parametrize("block", ["conformer", "e_branchformer"])
    def test_compacted(self, block):
        model = make(block, "relative", chunk=3, left_chunks=1, intermediate=[2]).eval()
        plain = compact(model)
        x, lengths = torch.randn(2, 40, 20), torch.tensor([40, 30])
        y, expected = plain(x, lengths)[0], model(x, lengths)[0]
        for row, length in enumerate((10, 7)):
            torch.testing.assert_close(y[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)


class TestIntermediate:
    X, LENGTHS = torch.randn(2, 40, 20, generator=torch.Generator().manual_seed(3)), torch.tensor([40, 30])
    TARGETS, TARGET_LENGTHS = torch.tensor([1, 2, 3, 4]), torch.tensor([3, 1])

    @pytest.mark.parametrize(("block", "positions"), FORMS)
    @pytest.mark.parametrize("output", ["shared", "own"])
    def test_outputs_and_loss(self, block, positions, output):
        changes = {"intermediate": [1, 2], "intermediate_weight": 0.4, "intermediate_output": output}
        model = make(block, positions, **changes)
        last, lengths, first, second = model(self.X, self.LENGTHS, intermediate=True)
        assert torch.equal(model(self.X, self.LENGTHS)[0], last)
        assert first.shape == second.shape == last.shape
        layers = list(model.intermediate) or [model.output] * 2
        assert len({id(layer) for layer in layers}) == (2 if output == "own" else 1)
        seen = []
        model.blocks[1].register_forward_hook(lambda *hooked: seen.append(hooked[2]))
        model(self.X, self.LENGTHS)
        expected = layers[1](seen[0]).log_softmax(-1)
        torch.testing.assert_close(second[0], expected[:10])
        found = model_loss((last, lengths, first, second), model.config, self.TARGETS, self.TARGET_LENGTHS)
        losses = [ctc_loss(y, lengths, self.TARGETS, self.TARGET_LENGTHS).loss for y in (last, first, second)]
        torch.testing.assert_close(found.loss, 0.6 * losses[0] + 0.2 * losses[1] + 0.2 * losses[2])
        assert (found.labels, found.skipped) == (4, 0)

    def test_it_costs_what_its_outputs_cost_and_is_not_elastic(self):
        plain, own = (
            Elastic(make("conformer", **c)) for c in ({}, {"intermediate": [1], "intermediate_output": "own"})
        )
        assert own.counts() == plain.counts()
        assert {n: m.cost for n, m in own.modules.items()} == {n: m.cost for n, m in plain.modules.items()}
        assert own.live_parameters() - plain.live_parameters() == 7 * (16 + 1)

    @pytest.mark.parametrize("output", ["shared", "own"])
    def test_trains_and_scores(self, output):
        """The scores are those of the whole loss, taken alone, from a model with the same weights."""
        config = tiny_config("model.intermediate=[1]", f"model.intermediate_output={output}", "spec_augment=null")
        source = TinySource()
        batch = next(source.train_batches(0))
        model = build_model(config, len(source.labels), source.inputs)
        optimizer = make_optimizer(model, config.optimizer)
        controller = make_controller(model, optimizer, config)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        result = TrainingStep(model, optimizer, config, controller)(batch, 1)
        assert result.labels == len(batch.targets)
        twin = build_model(config, len(source.labels), source.inputs)
        twin.load_state_dict({**twin.state_dict(), **before})
        torch.manual_seed(derive_seed(config.seed, "step", 1))
        loss = model_loss(
            twin.train()(batch.features, batch.feature_lengths, intermediate=True),
            twin.config,
            batch.targets,
            batch.target_lengths,
        ).loss
        assert result.loss == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        weight = twin.blocks[0].ffn1.w1.weight
        clip = min(1.0, config.optimizer.clip / result.grad_norm)
        taylor = (weight * weight.grad * clip).detach().abs().unflatten(0, (4, -1)).mean((1, 2))
        scores = controller.scores.values()["blocks.0.ffn1"]
        torch.testing.assert_close(
            scores / scores.sum(), (taylor / taylor.sum()).to(scores.dtype), rtol=1e-3, atol=1e-6
        )
        changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
        assert ("intermediate.0.weight" in changed) == (output == "own")
