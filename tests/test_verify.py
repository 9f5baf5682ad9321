"""`fnabench verify` as a user types it, on the bundled CLIP and on real weights."""

from __future__ import annotations

import sys

import pytest

from fnabench import __main__
from fnabench.references import read_verification
from fnabench.store import Store


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Exit code, stdout and stderr of fnabench verify in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fnabench", "verify", *arguments])
        with pytest.raises(SystemExit) as stop:
            __main__.main()
        return stop.value.code, *capsys.readouterr()

    return run


def test_the_bundled_clip_passes_and_is_proven(command, tmp_path):
    code, out, _ = command("--quick", "model=clip", "data=scenes")
    assert code == 0
    assert "PASS" in out
    assert "84.00" in out
    assert max(len(line) for line in out.splitlines() if "stored in" not in line) <= 100
    (path,) = (tmp_path / "results" / "verified" / "clip").iterdir()
    verification = read_verification(path)
    assert (verification.passed, verification.num_samples, verification.reference.limit) == (True, 100, 100)
    (record,) = Store(tmp_path / "results").folders()
    assert record.name == f"exact-{verification.record[:12]}"


def test_a_model_that_sees_less_fails_with_exit_code_1(command, tmp_path):
    code, out, _ = command("--quick", "model=clip", "data=scenes", "model.image_size=64")
    assert code == 1
    assert "FAIL" in out
    (path,) = (tmp_path / "results" / "verified" / "clip").iterdir()
    verification = read_verification(path)
    assert not verification.passed
    assert verification.measured["top1"] < 80
    assert "model.image_size=64" in verification.overrides


@pytest.mark.assets
def test_real_weights_pass_and_fail_with_the_wrong_mean_and_std(command, assets, monkeypatch):
    monkeypatch.setenv("FNABENCH_ASSETS", str(assets.resolve()))
    arguments = ("--quick", "model=vit_tiny", "data=imagenet_sample")
    code, out, _ = command(*arguments)
    assert (code, "89.00" in out) == (0, True)
    wrong = ("model.mean=[0.485,0.456,0.406]", "model.std=[0.229,0.224,0.225]")
    code, out, _ = command(*arguments, *wrong)
    assert (code, "FAIL" in out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give both, with one of these models: clip, clip_b16"),
        (("model=timm", "data=imagenet"), "no reference is known for model=timm data=imagenet"),
        (("model=vit_tiny", "data=scenes"), "for this model there are: data=imagenet_sample"),
        (("model=clip", "data=scenes", "attention=fna"), "verify does not take attention"),
        (("model=clip", "data=scenes", "task.method=knn"), r"verify does not take task\.method"),
        (("model=clip", "data=scenes", "data.limit=3"), r"verify does not take data\.limit"),
        (("model=llava_1_5_7b", "data=vqav2_val"), "for this model there are: data=scienceqa, data=textvqa"),
        (("--quick", "model=clip_l14", "data=coco_val2017"), "no subset has a reference .* leave --quick out"),
        (("model=clip", "data=scenes", "colour=red"), "colour"),
        (("model=deit_tiny", "data=imagenet"), "is not in the local cache|is not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, arguments, reason):
    import re

    code, out, err = command(*arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("fnabench: ")]
    assert (code, out) == (2, "")
    assert re.search(reason, line)
