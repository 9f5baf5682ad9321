"""budget=auto: what it chooses from known costs and a real model's fidelity, what it keeps, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from builders import random_images, timm_model
from small_world import SmallWorld

from fnabench.attention.base import Attention
from fnabench.attention.exact import Exact
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.native import Native
from fnabench.budget import Budget, Choice, Search, TowerCost
from fnabench.data.base import Sample
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.loader import Batch
from fnabench.models.timm_vit import TimmBackbone

NUM_TOKENS, DEPTH = 17, 4
BUDGET = Budget(num_landmarks=(4, NUM_TOKENS), num_rounds=1)
"""As many landmarks as tokens are exact, four are far from it."""


def search(num_classes: int = 10) -> Search:
    images = random_images(6)
    return Search(
        backbone=TimmBackbone(timm_model(num_classes=num_classes), transform=None),  # type: ignore[arg-type]
        attention=FnaRefined(num_landmarks=8, num_sinks=0),
        chunks=images.split(4),
        forward=lambda backbone, batch: backbone.encode_image(batch.images),
        batch=Batch(images=images[:2], samples=(Sample(id="0", image=None), Sample(id="1", image=None))),
    )


def with_costs(monkeypatch: pytest.MonkeyPatch, **exact: float) -> None:
    """Replaced layers take 2 ms with few landmarks and 5 ms with many, after 1 ms more for the first one."""
    layers = range(DEPTH)
    costs = {
        number: [TowerCost(layers=layers, exact=exact[name], first=each + 1, further=each)]
        for number, name, each in ((4, "few", 2.0), (NUM_TOKENS, "many", 5.0))
    }
    monkeypatch.setattr(Search, "_costs", lambda self, budget: costs)


def test_landmarks_are_added_until_the_fidelity_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with_costs(monkeypatch, few=10.0, many=10.0)
    choice = search().choose(BUDGET)
    assert (choice.num_landmarks, choice.layers, choice.measure) == (NUM_TOKENS, (0, 1, 2, 3), "kl")
    assert 0 <= choice.fidelity < 1e-6
    assert choice.time_ratio == pytest.approx(40 / 21)


def test_few_landmarks_win_where_they_keep_the_fidelity_and_save_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with_costs(monkeypatch, few=10.0, many=10.0)
    choice = search().choose(replace(BUDGET, max_kl=1e3))
    assert (choice.num_landmarks, choice.layers) == (4, (0, 1, 2, 3))
    assert choice.fidelity > 1e-3
    assert choice.time_ratio == pytest.approx(40 / 9)


def test_a_limit_between_them_gives_few_landmarks_the_last_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    with_costs(monkeypatch, few=10.0, many=1.0)  # with many landmarks exact attention is faster
    made = search()
    exact = made._outputs(Exact(), [])
    by_depth = [made._fidelity(4, range(first, DEPTH), exact, "kl") for first in range(DEPTH)]
    assert by_depth[1] > by_depth[2] > by_depth[3] == 0  # the last layer's class token is a landmark: exact
    choice = made.choose(replace(BUDGET, max_kl=1.001 * by_depth[2]))
    assert (choice.num_landmarks, choice.layers) == (4, (2, 3))
    assert choice.fidelity == pytest.approx(by_depth[2], rel=1e-4)


def test_a_layer_that_costs_more_than_exact_attention_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower tower is worth it as a whole, but not its last layer alone, which is all that the fidelity allows."""
    lower = TowerCost(layers=range(2), exact=3.0, first=5.0, further=0.5)
    upper = TowerCost(layers=range(2, DEPTH), exact=10.0, first=3.0, further=2.0)
    monkeypatch.setattr(Search, "_costs", lambda self, budget: {4: [lower, upper]})
    monkeypatch.setattr(Search, "_fidelity", lambda self, number, layers, *_: 0.1 * len(layers))
    choice = search().choose(replace(BUDGET, max_kl=0.35))
    assert choice.layers == (2, 3)
    assert choice.fidelity == pytest.approx(0.2)
    assert choice.time_ratio == pytest.approx(20 / 5)


def test_without_a_head_the_embeddings_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with_costs(monkeypatch, few=10.0, many=10.0)
    choice = search(num_classes=0).choose(BUDGET)
    assert (choice.num_landmarks, choice.measure) == (NUM_TOKENS, "cosine")
    assert choice.fidelity == pytest.approx(1)


def test_no_layer_is_replaced_where_exact_attention_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    with_costs(monkeypatch, few=1.0, many=1.0)
    with pytest.raises(ImpossibleError, match=r"exact attention is faster here with every number of .*\[4, 17\]"):
        search().choose(BUDGET)


def test_what_misses_the_fidelity_is_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with_costs(monkeypatch, few=10.0, many=1.0)
    made = replace(search(), attention=FnaRefined(num_landmarks=8, num_sinks=0, scatter=False))
    with pytest.raises(ImpossibleError, match=r"keeps budget\.max_kl=1e-09 .*; 4 landmarks in block 3 on give kl=\d"):
        made.choose(replace(BUDGET, max_kl=1e-9))


def test_the_costs_are_measured_for_the_landmarks_that_fit() -> None:
    costs = search()._costs(Budget(num_landmarks=(40, 8, 1), num_rounds=1))
    assert list(costs) == [8]
    (tower,) = costs[8]
    assert tower.layers == range(DEPTH)
    assert min(tower.exact, tower.first) > 0


def test_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with_costs(monkeypatch, few=10.0, many=10.0)
    made = search()
    before = made.backbone.classify(made.chunks[0])
    made.choose(BUDGET)
    assert all(layer.core is None for layer in made.backbone.layers)
    assert torch.equal(made.backbone.classify(made.chunks[0]), before)


def test_a_choice_survives_being_kept() -> None:
    choice = Choice(num_landmarks=48, layers=(5, 6, 7), measure="cosine", fidelity=0.99912345, time_ratio=1.75)
    assert Choice.of(choice.state()) == choice


@pytest.mark.parametrize("attention", [Exact(), Native()])
def test_a_variant_without_landmarks_is_refused(attention: Attention) -> None:
    with pytest.raises(ImpossibleError, match=r"budget=auto chooses attention\.num_landmarks, which \w+ has not"):
        Budget().check(attention)


@pytest.mark.parametrize("wrong", [{"max_kl": 0}, {"min_cosine": 1}, {"num_images": 0}, {"num_landmarks": ()}])
def test_impossible_budgets_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInputError, match=r"budget\."):
        Budget(**wrong)  # type: ignore[arg-type]


# Through the command line


OPTIONS = ("budget=auto", f"budget.num_landmarks=[5,{NUM_TOKENS}]", "budget.max_kl=100", "budget.num_images=4")


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs under which every number of landmarks is worth it."""

    def costs(made: Search, budget: Budget) -> dict[int, list[TowerCost]]:
        layers = range(len(made.backbone.layers))
        return {n: [TowerCost(layers=layers, exact=9.0, first=2.0, further=1.0)] for n in sorted(budget.num_landmarks)}

    monkeypatch.setattr(Search, "_costs", costs)


@pytest.mark.usefixtures("cheap")
def test_a_run_records_its_choice_and_keeps_it(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = world.run(*OPTIONS)
    assert code == 0, err
    assert "budget=auto chose 5 landmarks and these blocks: kl" in out
    monkeypatch.setattr(Search, "choose", None)  # which would fail now
    code, out, err = world.run(*OPTIONS, "format=json")
    assert code == 0, err
    found = json.loads(out)
    assert not found["new"]
    assert (found["choice"]["num_landmarks"], found["choice"]["measure"]) == (5, "kl")
    assert len(world.records()) == 2


@pytest.mark.usefixtures("cheap")
def test_rerun_chooses_again(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run(*OPTIONS)
    other = Choice(num_landmarks=NUM_TOKENS, layers=(5,), measure="kl", fidelity=0.0, time_ratio=1.5)
    monkeypatch.setattr(Search, "choose", lambda *_: other)
    for rerun in ("true", "false"):
        _, out, _ = world.run(*OPTIONS, "format=json", rerun=rerun)
        assert json.loads(out)["choice"]["num_landmarks"] == NUM_TOKENS


def test_numbers_of_landmarks_are_a_list(world: SmallWorld) -> None:
    line = world.refused("budget=auto", "budget.num_landmarks=64")
    assert "budget.num_landmarks=64 must be a list of a whole number" in line


@pytest.mark.usefixtures("cheap")
def test_a_budget_and_fixed_settings_share_the_exact_twin(world: SmallWorld) -> None:
    world.run(*OPTIONS)
    world.run()
    assert [folder.name.split("-")[0] for folder in world.records()] == ["exact", "fna", "fna"]


def test_exact_attention_has_no_budget(world: SmallWorld) -> None:
    assert "budget=auto chooses attention.num_landmarks, which Exact has not" in world.refused(
        "budget=auto", attention="exact"
    )
