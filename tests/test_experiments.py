"""The experiments of conf/experiment: each composes, and says how it is run and what should come out."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import hydra
import pytest
from hydra.types import RunMode

from fnabench import cli
from fnabench.experiment import Experiment

FOLDER = Path(__file__).resolve().parent.parent / "conf" / "experiment"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]


@pytest.mark.parametrize("name", NAMES)
def test_the_head_has_the_command_and_the_expected_result(name):
    head = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(re.match(rf"# python -m fnabench \+experiment={name}( |$)", line) for line in head)
    assert any(line.startswith("# Expected") for line in head)
    assert sum(bool(re.search(r"\d\d\.\d\d", line)) for line in head) >= 2


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("paper_")])
def test_a_run_of_the_paper_composes_into_its_parts(name):
    experiment = Experiment.of(*cli.compose([f"+experiment={name}", "model.revision=0123", "device=cpu"]))
    assert experiment.names == {"task": "retrieval", "data": "coco_val2017", "model": "clip_l14", "attention": "fna"}
    assert experiment.layer_indices == list(range(13, 24))
    size = int(name.rpartition("_")[2])
    assert experiment.blueprint.image_size == (size, size)
    assert experiment.blueprint.shapes[0].num_tokens == (size // 14) ** 2 + 1
    for index in experiment.layer_indices:
        experiment.attention.check(experiment.blueprint.shapes[index])
    experiment.task.check(experiment.model, experiment.blueprint, experiment.source)


@pytest.mark.parametrize(("model", "blocks"), [("vit_tiny", [8, 10, 11]), ("clip", [4, 6, 7])])
def test_the_masking_sweep_fits_models_of_any_depth(model, blocks):
    with hydra.initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = hydra.compose("config", ["+experiment=masking_sweep", f"model={model}"], return_hydra_config=True)
    assert cfg.hydra.mode == RunMode.MULTIRUN
    swept = {name: str(values).split(",") for name, values in cfg.hydra.sweeper.params.items()}
    found = set()
    for choice in product(*swept.values()):
        given = [f"{name}={value}" for name, value in zip(swept, choice, strict=True)]
        given += ["+experiment=masking_sweep", f"model={model}", "data=scenes", "device=cpu"]
        experiment = Experiment.of(*cli.compose(given)).settled()
        assert (experiment.names["task"], len(experiment.source)) == ("classification", 500)
        experiment.attention.check_layers(experiment.layer_indices)
        found.add((experiment.names["attention"], experiment.attention.tokens, experiment.attention.start_block))
        assert experiment.attention.detect_block == blocks[0]
    assert found == set(product(("exact_masked", "fna_masked"), ("massive", "artifact", "both"), blocks))


def test_a_setting_of_the_command_line_wins():
    cfg, _ = cli.compose(["+experiment=paper_retrieval_448", "attention.features=q", "dtype=float32"])
    assert (cfg.attention.features, cfg.dtype, cfg.model.image_size) == ("q", "float32", 448)
