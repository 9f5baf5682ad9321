"""The command line as a user types it: what is printed, what is stored, how mistakes are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_world import NUM_IMAGES

from fnabench import __main__, __version__
from fnabench.store import read_record

KEYS = [
    "task", "data", "model", "attention", "metric", "score", "exact", "difference", "difference_ci", "agreement",
    "latency_ratio", "latency_ratio_ci", "attention_latency_ratio", "ceiling", "peak_mib", "exact_peak_mib", "macs",
    "exact_macs", "num_samples", "num_tokens", "key", "exact_key", "record", "new",
]  # fmt: skip

HELP = """
import sys
from fnabench.__main__ import main
sys.argv = ["fnabench", "--help"]
try:
    main()
except SystemExit:
    pass
assert "torch" not in sys.modules
"""


def test_one_command_records_the_run_and_its_exact_twin(world):
    code, out, _ = world.run()
    assert code == 0
    assert [folder.name.split("-")[0] for folder in world.records()] == ["exact", "fna"]
    exact, fna = (read_record(folder) for folder in world.records())
    assert fna.exact_key == exact.key
    assert fna.comparison is not None
    assert fna.num_samples == NUM_IMAGES
    assert "top1" in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_exact_attention_alone_shows_its_score_once(world):
    row = next(line for line in world.run(attention="exact")[1].splitlines() if "top1 (%)" in line)
    assert [bool(cell.strip()) for cell in row.split("│")[2:4]] == [True, False]


def test_the_same_command_again_computes_nothing(world):
    world.run()
    before = {path: path.stat().st_mtime_ns for path in world.results.rglob("*.json")}
    code, out, _ = world.run()
    assert code == 0
    assert "record exists, nothing was computed" in " ".join(out.split())
    assert before == {path: path.stat().st_mtime_ns for path in world.results.rglob("*.json")}


def test_rerun_replaces_the_record_and_keeps_its_key(world):
    world.run()
    exact, fna = world.records()
    before = (fna / "record.json").stat().st_mtime_ns
    exact_before = (exact / "record.json").stat().st_mtime_ns
    world.run(rerun="true")
    assert world.records() == [exact, fna]
    assert (fna / "record.json").stat().st_mtime_ns > before
    assert (exact / "record.json").stat().st_mtime_ns == exact_before


def test_a_setting_that_changes_the_result_changes_the_key(world):
    first = json.loads(world.run(format="json")[1].splitlines()[-1])
    other = json.loads(world.run(format="json", attention__num_landmarks="6")[1].splitlines()[-1])
    assert first["key"] != other["key"]
    assert first["exact_key"] == other["exact_key"]


def test_fidelity_needs_no_labels(world):
    code, out, _ = world.run(task="fidelity", data__labels="null")
    assert code == 0
    exact, fna = (read_record(folder) for folder in world.records())
    assert exact.score.value == pytest.approx(1)
    assert fna.score.value < exact.score.value
    assert fna.units == {"kl": "nats"}
    assert {"attention_error_03", "attention_error_04", "attention_error_05"} <= set(fna.scores)
    assert "kl (nats)" in out
    assert "attention_error_05 (%)" in out


def test_where_things_lie_does_not_change_the_key(world, tmp_path):
    first = json.loads(world.run(format="json")[1].splitlines()[-1])
    moved = tmp_path / "elsewhere"
    world.images.rename(moved)
    again = json.loads(world.run(format="json", data__root=str(moved))[1].splitlines()[-1])
    assert again["key"] == first["key"]
    assert again["new"] is False


def test_a_record_tells_no_folder_that_the_user_did_not_type(world, monkeypatch):
    monkeypatch.setenv("FNABENCH_ASSETS", str(world.folder))
    world.run(data__root="'${oc.env:FNABENCH_ASSETS}/images'")
    text = (world.records()[0] / "record.json").read_text()
    assert "${oc.env:FNABENCH_ASSETS}/images" in text
    assert str(world.images) not in text


def test_json_is_the_last_line_of_stdout_and_nothing_else_is_there(world):
    _, out, err = world.run(format="json", probe="default", probe__num_rounds="2", probe__batch_size="2")
    (line,) = out.splitlines()
    values = json.loads(line)
    assert [key for key in KEYS if key not in values] == []
    assert values["new"] is True
    assert values["latency_ratio"] > 0
    assert values["latency_ratio_ci"][0] <= values["latency_ratio"] <= values["latency_ratio_ci"][1]
    assert values["ceiling"] > 0
    assert values["peak_mib"] > 0
    assert values["macs"] != values["exact_macs"]
    assert values["num_tokens"] == 17
    assert Path(values["record"]).is_dir()
    assert "top1" in err


def test_a_sweep_gives_one_record_each_and_the_twin_once(world):
    code, _, _ = world.run("-m", attention="native,exact,fna", model__image_size="160")
    assert code == 0
    assert [folder.name.split("-")[0] for folder in world.records()] == ["exact", "fna", "native"]


def test_a_sweep_over_landmarks_shares_the_twin(world):
    world.run("-m", attention__num_landmarks="2,3,4")
    assert [folder.name.split("-")[0] for folder in world.records()] == ["exact", "fna", "fna", "fna"]


def test_a_sweep_over_layers_shares_the_twin(world):
    world.run("-m", layers="half,all")
    assert [folder.name.split("-")[0] for folder in world.records()] == ["exact", "fna", "fna"]


def test_exact_and_native_agree_on_every_sample(world):
    world.run(attention="native")
    native = next(read_record(folder) for folder in world.records() if folder.name.startswith("native"))
    assert native.comparison.agreement == 1.0
    assert native.comparison.difference.value == 0.0


def test_a_bad_job_of_a_sweep_does_not_stop_the_others(world):
    code, _, err = world.run("-m", attention__num_landmarks="3,9999,4")
    assert code == 2
    assert err.count("fnabench: ") == 1
    assert [folder.name.split("-")[0] for folder in world.records()] == ["exact", "fna", "fna"]


def test_an_unknown_choice_names_the_allowed_ones(world):
    line = world.refused(attention="magic")
    assert line.startswith("fnabench: attention=magic is not known; allowed: exact, ")
    assert ", native, nystromformer, " in line


def test_an_unknown_option_names_the_known_ones(world):
    line = world.refused(colour="red")
    assert line.startswith("fnabench: colour is not known; allowed: ")
    assert "seed, data, loader" in line


@pytest.mark.parametrize("option", ["colour", "loader.colour", "attention.colour", "probe.colour"])
def test_an_unknown_option_is_not_let_in_by_a_plus(world, option):
    line = world.refused(f"+{option}=red")
    assert line.startswith(f"fnabench: {option} is not known")
    assert world.records() == []


def test_an_unknown_setting_of_a_variant_names_the_known_ones(world):
    line = world.refused(attention__num_points="4")
    assert line.startswith("fnabench: attention.num_points is not known; allowed: num_landmarks, features, ")
    assert "budget.max_kl is not known; allowed: none" in world.refused(budget__max_kl="0.1")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("loader=4", "loader=4 must be batch_size, num_workers, num_processes: loader.batch_size=16"),
        ("loader=null", "loader=None must be batch_size"),
        ("results_dir={a: 1}", "results_dir={'a': 1} must be text"),
        ("seed={a: 1}", "seed={'a': 1} must be a whole number"),
        ("data=null", "budget, probe, tracker are chosen by name, such as data=scenes; null and numbers name none"),
        ("~data", "data names no class; choose one by data=..., or leave it out for the default"),
    ],
)
def test_settings_and_groups_of_them_are_not_taken_for_each_other(world, setting, message):
    code, _, err = world.run_as_given("task=classification", "model=vit_tiny", "tracker=none", setting)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_class_that_is_not_there_is_told_in_one_line(world):
    line = world.refused("attention._target_=fnabench.attention.fna.Mine")
    assert "fnabench.attention.fna.Mine" in line


def test_a_word_that_is_no_command_is_told_the_commands(world):
    assert world.run("leader")[2].startswith("fnabench: leader is neither a command (figures, leaderboard, verify) nor")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("seed", "many", "a whole number"),
        ("seed", "-1", "at least 0"),
        ("rerun", "maybe", "true or false"),
        ("results_dir", "3", "text"),
        ("loader.batch_size", "two", "a whole number"),
        ("loader.num_workers", "2.5", "a whole number or null"),
        ("attention.num_landmarks", "null", "a whole number"),
        ("attention.ridge", "small", "a number"),
        ("task.ks", "[1,a]", "a list of a whole number"),
        ("model.mean", "[1,2]", "a list of 3 times a number or null"),
    ],
)
def test_a_value_of_another_type_is_refused(world, name, value, wanted):
    task = {"task": "retrieval"} if name == "task.ks" else {}
    line = world.refused(**task, **{name: value})
    assert line.startswith(f"fnabench: {name}=")
    assert f"must be {wanted}" in line


def test_a_setting_of_a_part_inside_a_part_is_checked_too(world):
    line = world.refused(attention="fna_masked", attention__inner__num_landmarks="1.5", attention__num_landmarks=None)
    assert "attention.inner.num_landmarks=1.5 must be a whole number" in line


def test_a_wrong_value_names_the_allowed_ones(world):
    assert "newton_schulz, ridge, pinv" in world.refused(attention__inverse="magic")
    assert "allowed: table, json" in world.refused(format="xml")
    assert "allowed: float32, bfloat16, float16" in world.refused(dtype="float8")
    assert "allowed: auto, cpu, cuda" in world.refused(device="abacus")


def test_a_missing_mandatory_value_says_what_to_type(world):
    assert "data.root=..." in world.refused(data__root=None)


def test_a_missing_checkpoint_says_where_it_was_looked_for(world):
    assert "absent.safetensors is not a file" in world.refused(model__checkpoint="absent.safetensors")


def test_a_hub_checkpoint_without_revision_is_refused(world):
    assert "is not pinned" in world.refused(model__checkpoint="hf-hub:owner/name")


def test_a_hub_checkpoint_that_cannot_be_had_says_what_to_download(world, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = world.refused(model__checkpoint="'hf-hub:owner/name@abc'")
    assert "hf download owner/name" in line


def test_weights_of_another_architecture_are_refused(world):
    assert "do not fit" in world.refused(model__architecture="vit_tiny_patch16_224")


def test_an_unknown_architecture_is_refused(world):
    assert "is not one of timm's models" in world.refused(model__architecture="vit_huger")


def test_an_architecture_that_is_no_vision_transformer_is_refused(world):
    assert "resnet18" in world.refused(model__architecture="resnet18")


def test_attention_that_is_not_understood_is_refused_by_name(world):
    line = world.refused(model__architecture="beit_base_patch16_224", model__image_size="224")
    assert "timm.models.beit.Attention" in line


def test_a_missing_folder_is_refused(world):
    assert "is not a folder" in world.refused(data__root="nowhere")


OTHER_MODEL = {f"model__{name}": None for name in ("architecture", "checkpoint", "num_classes", "image_size")}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "retrieval"}, "this task needs text of its model, which has classify and embed and patches"),
        ({"task": "vqa"}, "this task needs generate of its model"),
        ({"task": "segmentation"}, "this task needs mask of its data, which has label"),
        ({"task": "classification", "model": "llava", **OTHER_MODEL}, "neither a classification head nor a text tower"),
        ({"task": "fidelity", "task.num_neighbours": "0"}, "task.num_neighbours=0 must be at least 1"),
        ({"model": "llava", "task": "vqa", "model.scope": "text", **OTHER_MODEL}, "allowed: vision, decoder, both"),
    ],
)
def test_pairs_that_cannot_run_are_refused_with_the_reason(world, changes, reason):
    assert reason in world.refused(**changes)


def test_captions_without_their_image_are_refused(world):
    (world.folder / "captions.csv").write_text("image,caption\n0.png,noise\nghost.png,a ghost\n")
    changes = {"task": "retrieval", "model": "clip", **OTHER_MODEL, "data": "flickr_sample"}
    line = world.refused(**changes, data__root=str(world.folder))
    assert "1 of 2 images in" in line
    assert line.endswith("the first is ghost.png")


def test_questions_without_their_image_are_refused(world):
    (world.folder / "questions.json").write_text('[["what?", "noise", 0], ["who?", "a ghost", 99]]')
    changes = {"task": "vqa", "model": "llava", **OTHER_MODEL, "data": "questions"}
    line = world.refused(**changes, data__root=str(world.folder))
    assert "1 of 2 images in" in line
    assert line.endswith("the first is 99.png")


def test_masks_of_another_size_are_refused(world):
    for name in ("train", "trainannot", "val", "valannot"):
        (world.folder / name).mkdir()
        size = (8, 6) if name == "valannot" else (6, 8)
        Image.new("L" if name.endswith("annot") else "RGB", size).save(world.folder / name / "1.png")
    line = world.refused(task="segmentation", data="camvid", data__root=str(world.folder))
    assert "1.png" in line
    assert "8x6" in line


def test_an_unreadable_image_is_named(world):
    (world.images / "3.png").write_bytes(b"not an image")
    assert "3.png is not a readable image" in world.refused()
    assert world.records() == []


def test_an_unreadable_image_is_named_by_a_worker_process_too(world):
    (world.images / "3.png").write_bytes(b"not an image")
    assert "3.png is not a readable image" in world.refused(loader__num_workers="1")


def test_a_label_beyond_the_head_is_refused(world):
    with (world.images / "labels.csv").open("a") as file:
        file.write("0b.png,1000\n")
    (world.images / "0b.png").write_bytes((world.images / "0.png").read_bytes())
    assert "the labels go up to 1000" in world.refused()


def test_a_table_without_labels_cannot_be_classified(world):
    assert "needs label of its data" in world.refused(data__labels="null")


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused(world):
    assert "the nearest is 64x64" in world.refused(model__image_size="60")
    assert "16x16 patch" in world.refused(model__image_size="8")


def test_too_many_landmarks_are_refused_with_what_fits(world):
    assert "choose 2..17" in world.refused(attention__num_landmarks="18")


def test_the_detection_of_masked_tokens_has_a_line_of_its_own(world):
    code, out, _ = world.run(attention="exact_masked", probe="default", probe__num_rounds="1", probe__memory="false")
    assert code == 0
    assert "of which token detection (ms)" in out
    assert "tokens=massive, detector=norm" in " ".join(out.split())


def test_a_start_block_that_is_not_replaced_is_refused_before_anything_is_computed(world):
    line = world.refused(attention="fna_masked", attention__start_block="1", attention__inner__num_landmarks="5")
    assert "attention.start_block=1 is not among the blocks whose attention is replaced; choose one of 3, 4, 5" in line
    assert world.records() == []


def test_layers_that_are_not_there_are_refused(world):
    assert "layers=99" in world.refused(layers="99")


def test_a_corrupt_record_is_named_and_never_read(world):
    world.run()
    _, fna = world.records()
    text = (fna / "record.json").read_text()
    (fna / "record.json").write_text(text.replace('"num_samples": 6', '"num_samples": 7'))
    line = world.refused()
    assert "digest" in line
    assert "rerun=true" in line
    assert world.run(rerun="true")[0] == 0
    assert world.run()[0] == 0


def test_out_of_memory_is_recorded_and_told_in_one_line(world):
    variant = world.folder / "conf_here" / "attention"
    variant.mkdir(parents=True)
    (variant / "hungry.yaml").write_text("_target_: hungry_variant.Hungry\n")
    (world.folder / "hungry_variant.py").write_text(
        "from dataclasses import dataclass\nimport torch\nfrom fnabench.attention.base import Attention\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Hungry(Attention):\n"
        "    def __call__(self, inputs):\n        raise torch.OutOfMemoryError('CUDA out of memory.')\n"
        "    def macs(self, shape, num_layers):\n        return 0\n"
    )
    sys.path.insert(0, str(world.folder))
    try:
        arguments = ("--config-dir", str(variant.parent))
        for _ in range(2):  # once computed, once from the record
            code, _, err = world.run(*arguments, attention="hungry")
            assert code == 2
            assert "fnabench: out of memory with loader.batch_size=32" in err
    finally:
        sys.path.remove(str(world.folder))
    exact, hungry = (read_record(folder) for folder in world.records())
    assert (exact.status, hungry.status) == ("complete", "out of memory")
    assert hungry.scores == {}


@pytest.mark.parametrize(("changes", "reason"), [({"attention": "magic"}, "magic"), ({"layers": "99"}, "layers=99")])
def test_full_error_shows_the_traceback(world, monkeypatch, changes, reason):
    monkeypatch.setenv("FNABENCH_DEBUG", "")  # so that what main sets is undone after the test
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=reason):
        world.run(**changes)


def test_the_bundled_default_runs_with_nothing_given(world):
    code, out, _ = world.run_as_given("data.limit=40", "probe=none", "tracker=none", "format=json")
    assert code == 0
    values = json.loads(out)
    assert (values["task"], values["data"], values["model"], values["attention"]) == (
        "retrieval",
        "scenes",
        "clip",
        "fna",
    )
    assert values["exact"] > 0.8  # one of 40 images: chance is 2.5 %
    assert values["num_tokens"] == 257


def test_help_is_quick_and_imports_no_torch(tmp_path):
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "What replacing the attention" in done.stdout
    assert "attention: " in done.stdout


def test_version_is_that_of_fnabench(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fnabench", "--version"])
    __main__.main()
    assert capsys.readouterr().out == f"fnabench {__version__}\n"


def test_python_m_fnabench_from_any_folder(world):
    options = [f"{name}={value}" for name, value in world.defaults.items()]
    command = [sys.executable, "-m", "fnabench", *options, "format=json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=world.folder, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["attention"] == "fna"


def test_a_reader_that_stops_early_sees_no_traceback(tmp_path):
    command = f"{sys.executable} -m fnabench --help | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "What replacing the attention of a vision transformer costs and saves."
    assert done.stderr == ""
