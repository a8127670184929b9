"""Trainings from scratch at widths that another one has found."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner
from dmao import inspect
from dmao.cli import main
from dmao.config import ConfigError, load_config, save_config
from dmao.evaluate import evaluate, load_model, load_widths
from dmao.recipes.embedded.summary import parameters
from dmao.step import build_model, elastic_of
from dmao.trainer import train

from dmao_kernels.structure import Elastic
from tests.trainer.tiny import TinySource, tiny_config

WIDTHS = {"blocks.0.ffn1": 7, "blocks.0.attention": 6, "blocks.1.conv": 0, "blocks.1.ffn2": 1, "blocks.0.conv": 4}


def build(**options):
    config = tiny_config(*(f"model.{k}={v}" for k, v in options.items()))
    return build_model(config.with_widths(WIDTHS), 7, 8), build_model(config.baseline(), 7, 8)


@pytest.mark.parametrize("positions", ["none", "relative"])
def test_the_weights_are_those_of_a_new_model(positions):
    model, uniform = build(positions=positions)
    elastic = elastic_of(model, None, tiny_config().with_widths(WIDTHS))
    assert elastic.counts() == {**Elastic(uniform).counts(), **WIDTHS}
    block, standard = model.blocks[0], uniform.blocks[0]
    # Uniform within 1 / sqrt(inputs): of w2 the inputs are more than in the uniform model.
    for layer, inputs in ((block.ffn1.w1, 16), (block.ffn1.w2, 7 * 16), (standard.ffn1.w2, 4 * 16)):
        assert layer.weight.shape[1] == inputs
        assert layer.weight.abs().max().item() == pytest.approx(inputs**-0.5, rel=0.05)
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.1 * inputs**-0.5)
    assert block.attention.heads == 6
    if positions == "relative":
        assert not block.attention.content_bias.any()
    assert block.ffn1.dropout == pytest.approx(0.1 * 7 / 4)
    assert model.blocks[1].conv.empty
    x = torch.randn(2, 40, 8)
    assert torch.isfinite(model(x, torch.tensor([40, 30]))[0]).all()


def test_another_seed_draws_other_weights():
    config = tiny_config().with_widths(WIDTHS)
    first, again = build_model(config, 7, 8), build_model(config, 7, 8)
    other = build_model(load_config(None, []).from_dict({**config.to_dict(), "seed": 1}), 7, 8)
    weights = [m.blocks[0].ffn1.w1.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_summary_counts_as_the_training_does(tmp_path):
    """Where a module has no components, too."""
    config = tiny_config("steps=2", "grow_and_drop.schedule=null").with_widths(WIDTHS)
    made = train(config, tmp_path, TinySource())
    assert parameters(tmp_path) == made.parameters


def test_from_scratch_at_found_widths(tmp_path):
    found = train(tiny_config(), tmp_path / "found", TinySource())
    widths = load_widths(found.run_dir)
    assert widths == found.component_counts
    assert len(set(widths.values())) > 1
    settings = tiny_config("eval_splits=[test]").with_widths(widths)
    scratch = train(settings, tmp_path / "scratch", TinySource())
    assert scratch.component_counts == widths
    assert scratch.events == []
    assert {m["name"]: m["components"] for m in inspect.structure_of(scratch.run_dir)["modules"]} == widths
    assert scratch.parameters == found.parameters <= sum(p.numel() for p in load_model(scratch.run_dir).parameters())
    assert evaluate(scratch.run_dir, "test", TinySource()).to_dict() == scratch.evaluations["test"]
    assert train(settings, scratch.run_dir, TinySource()) == scratch
    save_config(settings, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("components=2", r"blocks\.0\.ffn1 must have 2 components in the uniform model .*, got 4"),
        ("blocks=3", r"blocks\.2\.ffn1 must have 4 components in the uniform model .*, got none"),
        ("blocks=1", r"blocks\.1\.ffn1 must have no components in the uniform model .*, got 4"),
        ("heads=2", r"blocks\.0\.attention must have 2 components in the uniform model .*, got 4"),
        (
            "block=e_branchformer",
            r"blocks\.0\.merge\.attention must have 4 components in the uniform model .*, got none",
        ),
    ],
)
def test_widths_of_other_components_are_refused(tmp_path, change, said):
    source = train(tiny_config("steps=1", "grow_and_drop.schedule=null"), tmp_path / "source", TinySource())
    save_config(tiny_config(f"model.{change}"), tmp_path / "config.yaml")
    arguments = ["--run-dir", tmp_path / "run", "--widths-of", source.run_dir]
    result = CliRunner().invoke(main, ["train", *map(str, (tmp_path / "config.yaml", *arguments))])
    assert result.exit_code == 2
    assert re.search(f"config: widths: {said}$", result.stderr.strip()), result.stderr
    wider = tiny_config("model.width=32", "model.head_dim=8")
    assert load_widths(source.run_dir, wider.model) == load_widths(source.run_dir)


def test_widths_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"no elastic module 'ffn'; known here: blocks.0.ffn1, "):
        build_model(tiny_config().with_widths({"ffn": 3}), 7, 8)
    with pytest.raises(ConfigError, match=r"blocks.0.ffn1 must have 0 to 1048576 components, got -1"):
        build_model(tiny_config().with_widths({"blocks.0.ffn1": -1}), 7, 8)
    with pytest.raises(ConfigError, match=r"widths needs grow_and_drop\.schedule: null"):
        tiny_config("widths=[[blocks.0.ffn1, 3]]")
    result = CliRunner().invoke(main, ["train", "--help"])
    assert "--widths-of" in result.stdout
