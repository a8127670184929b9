"""dmao inspect package.module:callable: what is elastic in any model, what is not, and why."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from dmao.cli import main

MODEL = """
import torch
from torch import nn

def build(d=8, heads=2):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, d)
            self.layer = nn.TransformerEncoderLayer(d, heads, 4 * d, batch_first=True)
            self.other = nn.MultiheadAttention(d, heads, kdim=3)
            self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))
            self.head = nn.Linear(d, 5)

        def forward(self, x):
            return self.head(self.mlp(self.layer(self.embed(x))))

    return Model()

def number():
    return 5

class Made:
    build = staticmethod(build)
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inspected_models.py").write_text(MODEL)


def run(*arguments):
    return CliRunner().invoke(main, ["inspect", *arguments], prog_name="dmao")


def test_a_model_by_name():
    found = json.loads(run("inspected_models:build", "--json").stdout)
    assert [(m["name"], m["family"], m["components"], m["at_least"]) for m in found["modules"]] == [
        ("layer", "feedforward", 4, 1),
        ("layer.self_attn", "packed_attention", 2, 0),
    ]
    assert found["modules"][0]["parameters_per_component"] == (2 * 8 * 32 + 32) / 4
    assert found["adaptable"] == sum(m["parameters"] for m in found["modules"])
    assert sum(m["share"] for m in found["modules"]) == pytest.approx(found["adaptable"] / found["parameters"])
    fixed = {(group["kind"], group["reason"]): group["modules"] for group in found["fixed"]}
    assert fixed[("Embedding", "no family knows it")] == ["embed"]
    assert fixed[("MultiheadAttention", "keys or values of another width than queries (kdim, vdim)")] == ["other"]
    assert fixed[("Linear", "no family knows it")] == ["mlp.0", "mlp.2", "head"]
    assert found["adaptable"] + sum(group["parameters"] for group in found["fixed"]) == found["parameters"]


def test_discovery_by_an_example():
    found = json.loads(run("inspected_models:build", "--example", "int:2,3", "--set", "d=16", "--json").stdout)
    assert [m["name"] for m in found["modules"]] == ["layer", "layer.self_attn", "mlp"]
    reasons = {name: group["reason"] for group in found["fixed"] for name in group["modules"]}
    assert reasons["head"] == "its output leaves the model"
    text = run("inspected_models:Made.build", "--example", "int:2,3", "--components", "8").stdout
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert rows["mlp"][1:4] == ["feedforward", "8", "8"]
    assert "fixed: 45 in Linear: its output leaves the model: head" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "'missing' does not exist, nor is it package.module:callable"),
        (["no_such_package:build"], "makes no model: ModuleNotFoundError: No module named 'no_such_package'"),
        (["inspected_models:nothing"], "makes no model: AttributeError"),
        (["inspected_models:build", "--set", "depth=3"], "unexpected keyword argument 'depth'"),
        (["inspected_models:build", "--set", "depth"], "must look like key=value"),
        (["inspected_models:number"], "must return an nn.Module, got int"),
        (["inspected_models:build", "--example", "2,x"], "an example must look like 2,100,80"),
        (["inspected_models.py", "--components", "2"], "--components is for package.module:callable"),
        (["torch.nn:Linear", "--set", "in_features=2", "--set", "out_features=2"], "no elastic module"),
        (
            ["torch.nn:Linear", "--set", "in_features=2", "--set", "out_features=2", "--example", "3,2"],
            "discover); discover left it: its output leaves the model",
        ),
        (["inspected_models:build", "--example", "2,3"], "does not take the example float32 [2, 3]: "),
        (
            ["torch.nn:TransformerEncoderLayer", "--set", "d_model=8", "--set", "nhead=2", "--example", "2,5,7"],
            "does not take the example float32 [2, 5, 7]: was expecting embedding dimension of 8, but got 7",
        ),
    ],
)
def test_errors_are_one_line(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert said in line
