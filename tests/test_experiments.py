"""The experiments of conf/experiment: each composes, and says how it is run and what should come out."""

from __future__ import annotations

import re
from itertools import product

import hydra
import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf
from small_llava import save_llava
from small_world import SmallWorld

from fnabench import cli
from fnabench.configurations import CONF
from fnabench.errors import MissingError
from fnabench.experiment import Experiment
from fnabench.store import read_record

FOLDER = CONF / "experiment"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]
RETRIEVAL = [name for name in NAMES if name.startswith("paper_retrieval_")]
MASKING = OmegaConf.load(FOLDER / "paper_masking.yaml").hydra.sweeper.params


@pytest.mark.parametrize("name", NAMES)
def test_the_head_has_the_command_and_the_expected_result(name):
    head = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(re.match(rf"# python -m fnabench \+experiment={name}( |$)", line) for line in head)
    assert any(line.startswith("# Expected") for line in head)
    assert sum(bool(re.search(r"\d\d\.\d\d", line)) for line in head) >= 2


@pytest.mark.parametrize("name", RETRIEVAL)
def test_a_retrieval_composes_into_its_parts(name):
    experiment = Experiment.of(*cli.compose([f"+experiment={name}", "device=cpu"]))
    assert experiment.names == {"task": "retrieval", "data": "coco_val2017", "model": "clip_l14", "attention": "fna"}
    assert experiment.layer_indices == list(range(13, 24))
    size = int(name.rpartition("_")[2])
    assert experiment.blueprint.image_size == (size, size)
    assert experiment.blueprint.shapes[0].num_tokens == (size // 14) ** 2 + 1
    for index in experiment.layer_indices:
        experiment.attention.check(experiment.blueprint.shapes[index])
    experiment.task.check(experiment.model, experiment.blueprint, experiment.source)


def test_llava_bench_composes_into_its_parts(tmp_path):
    """On a checkpoint of random weights with the decoder's 32 blocks."""
    checkpoint = save_llava(tmp_path, "llava_next", num_hidden_layers=32)
    changes = [f"model.checkpoint={checkpoint}", "task.bertscore=somewhere", "device=cpu"]
    experiment = Experiment.of(*cli.compose(["+experiment=llava_bench", *changes]))
    names = {"task": "generation", "data": "llava_bench_coco", "model": "llava_1_6_vicuna_7b", "attention": "fna"}
    assert experiment.names == names
    assert experiment.layer_indices == list(range(16, 32))
    assert experiment.blueprint.shapes[0].is_causal
    assert (experiment.task.metric, experiment.attention.num_landmarks) == ("bertscore_f1", 64)
    with pytest.raises(MissingError, match=r"task\.bertscore=somewhere is not a folder"):
        experiment.task.check(experiment.model, experiment.blueprint, experiment.source)


@pytest.mark.parametrize(("model", "blocks"), [("vit_tiny", [8, 10, 11]), ("clip", [4, 6, 7])])
def test_the_masking_sweep_fits_models_of_any_depth(model, blocks):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
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


@pytest.mark.parametrize("attention", MASKING["attention"].split(","))
@pytest.mark.parametrize("tokens", MASKING["attention.tokens"].split(","))
def test_the_paper_s_masking_composes_into_runs_that_are_possible(attention, tokens):
    for block in MASKING["attention.start_block"].split(","):
        point = [f"attention={attention}", f"attention.tokens={tokens}", f"attention.start_block={block}"]
        experiment = Experiment.of(*cli.compose(["+experiment=paper_masking", "device=cpu", *point]))
        assert experiment.names["attention"] == attention
        assert experiment.layer_indices == list(range(13, 24))
        assert (experiment.attention.detect_block, experiment.attention.start_block) == (13, int(block))
        experiment.attention.check_layers(experiment.layer_indices)
    experiment.task.check(experiment.model, experiment.blueprint, experiment.source)
    experiment.attention.check(experiment.blueprint.shapes[0])


def test_the_paper_s_masking_runs_every_point(tmp_path, monkeypatch, capsys):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    small = {**world.defaults, "layers": "all", "attention": "exact_masked,fna_masked", "attention.detect_block": "1"}
    small |= {"attention.start_block": "1,2", "attention.tokens": "both", "model.image_size": "160"}
    del small["attention.num_landmarks"]
    code, _, err = world.run_as_given(
        "+experiment=paper_masking", *(f"{name}={value}" for name, value in small.items())
    )
    assert code == 0, err
    records = [read_record(folder) for folder in world.records()]
    points = {
        (each.attention, each.identity["attention"]["tokens"], each.identity["attention"]["start_block"])
        for each in records
        if each.attention != "exact"
    }
    assert len(points) == len(records) - 1 == 4
