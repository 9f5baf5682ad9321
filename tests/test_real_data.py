"""The published data sets in their official layouts: what the small copies of all of them keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import CONF, LAYOUTS, PROVIDES, SIZE, configured, copy_of, counts
from omegaconf import OmegaConf

from fnabench.data.base import Source
from fnabench.errors import BadInputError, FnabenchError, MissingError

pytestmark = pytest.mark.usefixtures("no_hub")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_small_copy_is_read_whole(name: str, tmp_path: Path) -> None:
    source: Source = copy_of(name, tmp_path / "data")
    source.check()
    samples = [source[index] for index in range(len(source))]
    assert source.provides == {PROVIDES[name]}
    assert len({sample.id for sample in samples}) == len(samples) >= 3 - (name in ("vqav2_val", "textvqa"))
    for sample in samples:
        assert sample.image is not None
        assert (sample.image.mode, sample.image.size) == ("RGB", SIZE)
        filled = {
            "label": sample.label is not None, "captions": bool(sample.captions), "mask": sample.mask is not None,
            "questions": any(len(question.answers) == 10 for question in sample.questions),
            "open_questions": any(len(question.answers) == 1 for question in sample.questions),
        }  # fmt: skip
        assert {what for what, is_filled in filled.items() if is_filled} == {PROVIDES[name]}
    assert source.fingerprint() == configured(name, tmp_path / "data", **counts(source)).fingerprint()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_limit_takes_the_first_and_is_part_of_the_fingerprint(name: str, tmp_path: Path) -> None:
    whole = copy_of(name, tmp_path / "data")
    part = configured(name, tmp_path / "data", **counts(whole), limit=1)
    part.check()
    assert len(part) == 1
    assert part[0].id == whole[0].id
    assert part.fingerprint() != whole.fingerprint()
    with pytest.raises(BadInputError, match=r"data\.limit=10000 must be between 1 and"):
        len(configured(name, tmp_path / "data", **counts(whole), limit=10000))


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_number_of_samples_is_refused(name: str, tmp_path: Path) -> None:
    source = copy_of(name, tmp_path / "data")
    official = OmegaConf.load(CONF / f"{name}.yaml")
    for what, number in counts(source).items():
        assert official[what] >= 30 or what == "num_classes", f"{name} does not guard {what}"
        if what != "num_classes":
            assert number is not None
            with pytest.raises(BadInputError, match=r"has \d+ .*, here are \d+; complete the data"):
                configured(name, tmp_path / "data", **(counts(source) | {what: 4711 % 1000})).check()


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_that_is_not_there_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        FnabenchError, match=r"data\.root=.*nowhere is not a folder; (.*https?://|give the one)"
    ) as caught:
        configured(name, tmp_path / "nowhere").check()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MissingError)


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if name not in ("imagenet_hub", "scienceqa") and PROVIDES[name] != "mask"]
)
def test_a_missing_image_is_named_before_any_is_read(name: str, tmp_path: Path) -> None:
    source = copy_of(name, tmp_path / "data")
    next(path for path in sorted((tmp_path / "data").rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")).unlink()
    with pytest.raises(BadInputError, match=r"1 of \d+ images in .* are not in|has 24 images, here are 23"):
        source.check()
