"""The table of published results, and what counts as meeting one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fnabench.tasks.segmentation import STRIDE, WINDOW, Segmentation
from records import a_record

from fnabench import cli, leaderboard
from fnabench.errors import BadInputError, MissingError
from fnabench.experiment import Experiment
from fnabench.references import Reference, judge, read_references, read_verification, save_verification
from fnabench.statistics import Estimate

CONF = Path(__file__).resolve().parent.parent / "conf"
REFERENCES = read_references()
REFERENCE = Reference(
    model="timm", data="folder", task="classification", settings=("task.method=head",), expected={"top1": 75.2},
    tolerance=0.3, source="made up",
)  # fmt: skip


def record_of(score: float, *, weights="w", mean=0.5, size=224, code="c", dtype="float32", **changes: object):
    model = {"weights": weights, "mean": mean, "image_size": size}
    identity = {"attention": {"class": "Exact", "m": 1}, "dtype": dtype, "model": model, "code": code}
    scores = {"top1": Estimate(value=score, low=0.0, high=1.0)}
    return a_record(identity=identity, scores=scores, **changes)


def verified(record):
    page = leaderboard.to_markdown([record], verifications=PROOFS)
    (row,) = [line for line in page.splitlines() if line.startswith("| timm")]
    return row.split(" | ")[-2]


PROOFS: list = []


@pytest.fixture(autouse=True)
def no_proofs():
    PROOFS.clear()


# The table


def test_every_reference_names_a_model_a_data_set_and_a_task_that_there_are():
    for reference in REFERENCES:
        for kind in ("model", "data", "task"):
            assert (CONF / kind / f"{getattr(reference, kind)}.yaml").is_file(), reference
        assert reference.source
        assert 0 < reference.tolerance < 5
        assert all(0 < value <= 100 for value in reference.expected.values())


def test_each_reference_of_a_model_has_a_name_of_its_own():
    assert len({(each.model, each.name) for each in REFERENCES}) == len(REFERENCES)


@pytest.mark.parametrize(
    ("model", "data", "metric", "expected", "tolerance"),
    [
        ("clip_b32", "imagenet", "top1", 63.32, 0.3),
        ("clip_l14_336", "imagenet_hub", "top1", 76.56, 0.3),
        ("siglip_so400m", "imagenet", "top1", 83.08, 0.3),
        ("clip_b16", "coco_karpathy", "i2t_r10", 84.62, 0.3),
        ("clip_l14", "coco_val2017", "t2i_r1", 35.33, 0.3),
        ("clip_l14", "coco_karpathy", "t2i_r1", 36.51, 0.3),
        ("deit_tiny", "imagenet", "top1", 72.19, 0.3),
        ("vit_large", "imagenet", "top1", 85.86, 0.3),
        ("dinov2_s", "ade20k", "miou", 44.3, 0.5),
        ("dinov2_b", "voc2012", "miou", 82.5, 0.5),
        ("llava_1_5_7b", "textvqa", "vqa_evalai", 58.2, 1.0),
        ("llava_1_6_vicuna_7b", "textvqa", "vqa_evalai", 64.9, 1.0),
        ("llava_1_5_7b", "scienceqa", "vqa_big_vision", 66.8, 3.0),
    ],
)
def test_the_published_values_are_in_the_table(model, data, metric, expected, tolerance):
    (found,) = [each for each in REFERENCES if (each.model, each.data, each.limit) == (model, data, None)]
    assert (found.expected[metric], found.tolerance) == (expected, tolerance)


def test_llavas_numbers_on_test_dev_are_no_reference_for_val():
    assert not [each for each in REFERENCES if each.data == "vqav2_val"]


@pytest.mark.parametrize("reference", [each for each in REFERENCES if each.task == "vqa"], ids=str)
def test_llavas_protocols_are_those_of_its_paper(reference):
    cfg, choices = cli.compose([f"model={reference.model}", f"data={reference.data}", "task=vqa", *reference.settings])
    experiment = Experiment.of(cfg, choices)
    assert [experiment.task.metric] == list(reference.expected)
    if reference.data == "scienceqa":
        assert experiment.task.suffix == "Answer with the option's letter from the given choices directly."
    else:
        assert (experiment.source.ocr is not None) == (reference.model == "llava_1_5_7b")


def test_dinov2_has_a_reference_for_neighbours_and_one_for_the_probe():
    found = {
        each.settings[0]: each.expected["top1"]
        for each in REFERENCES
        if (each.model, each.data) == ("dinov2_l", "imagenet")
    }
    assert found == {"task.method=knn": 83.5, "task.method=linear": 86.3}


@pytest.mark.parametrize("reference", [each for each in REFERENCES if each.task == "segmentation"], ids=str)
def test_dinov2s_segmentation_is_verified_with_its_own_head_through_windows(reference, monkeypatch):
    monkeypatch.setenv("FNABENCH_DATA", "/anywhere")
    overrides = [f"model={reference.model}", f"data={reference.data}", "device=cpu"]
    cfg, choices = cli.compose(["task=segmentation", *reference.settings, *overrides])
    experiment = Experiment.of(cfg, choices)
    size = reference.model.removeprefix("dinov2_")
    assert experiment.task == Segmentation(
        inference="slide", head=f"/anywhere/dinov2_vit{size}14_{reference.data}_linear_head.pth",
    )  # fmt: skip
    assert (WINDOW, round(STRIDE * 512)) == (1, 341)
    assert experiment.blueprint.image_size == (518, 518)
    with pytest.raises(MissingError, match=r"download it from https://dl\.fbaipublicfiles\.com/dinov2/"):
        experiment.check()


def test_a_subset_has_a_wider_tolerance_and_recall_has_no_subset():
    quick = [each for each in REFERENCES if each.limit]
    assert quick
    for each in quick:
        (whole,) = [other for other in REFERENCES if (other.model, f"{other.name}-quick") == (each.model, each.name)]
        assert each.tolerance > whole.tolerance
        assert each.task != "retrieval"


@pytest.mark.parametrize(
    "reference", {(r.task, r.data, r.settings): r for r in REFERENCES}.values(), ids=lambda r: r.name
)
def test_the_command_of_a_reference_composes(reference):
    overrides = [f"task={reference.task}", "attention=exact", f"model={reference.model}", f"data={reference.data}"]
    cfg, choices = cli.compose([*overrides, *reference.settings])
    assert (choices["model"], choices["attention"]) == (reference.model, "exact")
    assert "hydra" not in cfg
    assert all(cfg.task.method == each.removeprefix("task.method=") for each in reference.settings if "method" in each)


# Judging


@pytest.mark.parametrize(
    ("score", "passed"), [(0.752, True), (0.749, True), (0.755, True), (0.7489, False), (0.7551, False)]
)
def test_a_score_within_the_tolerance_passes(score, passed):
    assert judge(REFERENCE, record_of(score), ()).passed is passed


def test_every_metric_must_be_met():
    scores = {name: Estimate(value=value, low=0, high=1) for name, value in (("t2i_r1", 0.5), ("i2t_r1", 0.6))}
    identity = {"model": {"weights": "w"}, "code": "c", "attention": {}, "dtype": "float32"}
    reference = replace(REFERENCE, task="retrieval", expected={"t2i_r1": 50.0, "i2t_r1": 61.0})
    verification = judge(reference, a_record(scores=scores, identity=identity), ("device=cpu",))
    assert not verification.passed
    assert verification.measured == {"t2i_r1": 50.0, "i2t_r1": 60.0}
    assert verification.overrides == ("device=cpu",)


def test_a_proof_is_read_back_and_one_that_was_changed_is_refused(tmp_path):
    verification = judge(REFERENCE, record_of(0.752), ("device=cpu",))
    path = save_verification(tmp_path, verification)
    assert path == tmp_path / "verified" / "timm" / "folder-classification-head.json"
    assert read_verification(path) == verification
    failed = save_verification(tmp_path, judge(REFERENCE, record_of(0.5), ()))
    assert failed == path, "the later replaces the earlier"
    path.write_text(path.read_text().replace('"passed": false', '"passed": true'))
    with pytest.raises(BadInputError, match=r"changed since it was written; run fnabench verify again"):
        read_verification(path)
    path.write_text("{")
    with pytest.raises(BadInputError, match="no whole verification"):
        read_verification(path)


# The leaderboard


def test_a_row_is_verified_only_by_its_own_weights_code_dtype_and_data():
    assert verified(record_of(0.7)) == "-"
    PROOFS.append(judge(REFERENCE, record_of(0.752), ()))
    assert verified(record_of(0.7)) == "yes"
    assert verified(record_of(0.7, size=448)) == "yes"
    assert verified(record_of(0.7, mean=0.4)) == "-"
    assert verified(record_of(0.7, weights="other")) == "-"
    assert verified(record_of(0.7, code="other")) == "-"
    assert verified(record_of(0.7, dtype="bfloat16")) == "-"
    assert verified(record_of(0.7, data="elsewhere")) == "-"


def test_a_subset_and_a_failure_are_told_apart():
    PROOFS.append(judge(replace(REFERENCE, limit=100), record_of(0.752), ()))
    assert verified(record_of(0.7)) == "quick"
    PROOFS.append(judge(REFERENCE, record_of(0.5), ()))
    assert verified(record_of(0.7)) == "no"


def test_an_unreadable_proof_is_told_and_skipped(tmp_path):
    path = save_verification(tmp_path, judge(REFERENCE, record_of(0.752), ()))
    path.with_name("broken.json").write_text("{}")
    found, problems = leaderboard.read_verifications(tmp_path)
    assert len(found) == 1
    assert "broken.json" in problems[0]
