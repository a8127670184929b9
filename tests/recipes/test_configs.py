"""The configurations of the recipes: every published setting, parameters to the unit, found by their names."""

from __future__ import annotations

import pytest
import yaml
from dmao.config import ConfigError, load_config
from dmao.models import ConformerCTC
from dmao.recipes import configs

CORPORA = ("librispeech", "tedlium2", "switchboard")
BLOCKS = ("conformer", "e_branchformer")
WIDTHS = (256, 384, 512)
ALL = [f"{corpus}/{block}_{width}" for corpus in CORPORA for block in BLOCKS for width in WIDTHS]
# With 79 outputs. arXiv 2506.13180 gives 19.03 / 42.07 / 74.15 M and 25.74 / 56.85 / 100.16 M.
PARAMETERS = {
    "conformer_256": 19_025_455,
    "conformer_384": 42_066_991,
    "conformer_512": 74_152_495,
    "e_branchformer_256": 25_737_775,
    "e_branchformer_384": 56_854_063,
    "e_branchformer_512": 100_160_047,
}
PUBLISHED_MILLIONS = (19.03, 42.07, 74.15, 25.74, 56.85, 100.16)


def load(name, *overrides):
    return load_config(configs()[name], overrides)


def test_all_are_there():
    assert set(ALL) | {"embedded/demo", "embedded/table", "recorded/cs", "recorded/nl"} == set(configs())


def test_counts_are_the_published_ones():
    assert tuple(round(count / 1e6, 2) for count in PARAMETERS.values()) == PUBLISHED_MILLIONS


@pytest.mark.parametrize("name", ALL)
def test_parameters_to_the_unit(name):
    import torch

    with torch.device("meta"):
        model = ConformerCTC(load(name).model.conformer(outputs=79))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name.split("/")[1]]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_costs_of_components(block, width):
    """What one component owns, and how many there are (docs/METHOD.md, section 1)."""
    import torch

    from dmao_kernels.structure import Elastic

    with torch.device("meta"):
        elastic = Elastic(ConformerCTC(load(f"librispeech/{block}_{width}").model.conformer(outputs=79)))
    expected = {
        "feedforward": 2 * width**2 + 7 * width / 4,
        "glu_convolution": 0.75 * width**2 + 9.75 * width,
        "attention": 256 * width + 384,
        "cgmlp": 2.25 * width**2 + 27.75 * width,
    }
    found = {module.layout.family: module.cost for module in elastic.modules.values()}
    assert found == {family: expected[family] for family in found}
    assert len(found) == 3
    assert sum(elastic.counts().values()) == 12 * (8 + 4 + width // 64)


@pytest.mark.parametrize("name", ALL)
def test_published_settings(name):
    config = load(name)
    corpus, _, shape = name.partition("/")
    libri, ted, width = corpus == "librispeech", corpus == "tedlium2", int(shape.rpartition("_")[2])
    model, gd, rate = config.model, config.grow_and_drop, config.learning_rate
    assert config.epochs == (30 if libri else 50)
    assert config.data.batch_seconds == (150 if libri else 180)
    assert config.data.labels == "phonemes"
    assert (model.width, model.block, model.blocks, model.head_dim) == (width, shape.rpartition("_")[0], 12, 64)
    assert (model.expansion, model.kernel, model.components, model.positions) == (4, 31, 4, "none")
    assert (model.dropout, model.output_dropout) == (0.1, 0.1 if libri else 0.2)
    assert (model.front_channels, model.time_pooling, model.frequency_pooling) == ((32, 64, 64, 32), (2, 2), (1, 1))
    assert model.activation == "silu"
    assert (config.optimizer.eps, config.optimizer.weight_decay, config.optimizer.clip) == (1e-16, 1e-3, None)
    augment = config.spec_augment
    assert (augment.time_masks, augment.frames_per_mask, augment.time_width) == (2, 25, 20)
    assert (augment.frequency_masks, augment.frequency_width) == ((2, 8 if libri else 16), 5)
    peak = 5e-4 if ted else 3e-4 if corpus == "switchboard" and width == 512 else 4e-4
    turn = 0.44 if ted else 0.45
    steps = 100_001
    shares = {0: peak / 100, turn: peak, 2 * turn: peak / (100 if libri else 10), 1: 1e-8}
    for share, value in shares.items():
        assert rate.at(1 + round(share * (steps - 1)), steps) == pytest.approx(value, rel=1e-5)
    assert gd.schedule.steps(1000) == (150 if libri else 200,)
    assert gd.schedule.fraction == (0.2 if ted else 0.15)
    assert (gd.metric, gd.scope, gd.selection, gd.beta, gd.observe_every) == ("taylor", "slice", "paper", 0.1, 1000)


def test_a_file_changes_its_base(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("steps: 7\nmodel: {width: 48, blocks: 3}\nspec_augment: null\n")
    (tmp_path / "middle.yaml").write_text("base: base.yaml\nmodel: {blocks: 2}\n")
    (tmp_path / "sub" / "leaf.yaml").write_text("base: ../middle.yaml\nsteps: 8\nspec_augment: {time_masks: 1}\n")
    config = load_config(tmp_path / "sub" / "leaf.yaml", ["model.kernel=3"])
    assert (config.steps, config.model.width, config.model.blocks, config.model.kernel) == (8, 48, 2, 3)
    assert config.spec_augment.time_masks == 1


def test_wrong_bases(tmp_path):
    path = tmp_path / "leaf.yaml"
    path.write_text("base: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.yaml"):
        load_config(path)
    path.write_text("base: leaf.yaml\n")
    with pytest.raises(ConfigError, match=r"leaf.yaml is its own base"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=0", "epochs must be 1 or more"),
        ("data.workers=-1", "workers must lie between 0 and 256"),
        ("device=gpu", "auto"),
    ],
)
def test_wrong_values(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, [override])


def test_saved_configs_stand_alone(tmp_path):
    from dmao.config import save_config

    config = load("switchboard/conformer_512")
    save_config(config, tmp_path / "config.yaml")
    assert "base" not in yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert load_config(tmp_path / "config.yaml") == config
