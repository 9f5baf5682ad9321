"""The linear head: a logistic regression whose penalty is chosen on held-out samples, never on the test split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layouts import imagenet
from PIL import Image
from scipy.optimize import minimize
from scipy.special import log_softmax
from small_world import SmallWorld

from fnabench.errors import BadInputError
from fnabench.linear_head import PENALTIES, fit_linear_head
from fnabench.store import read_record


def noisy_classes(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three classes with as many channels of pure noise, and one-hot targets."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.nn.functional.one_hot(torch.randint(3, (count,), generator=generator), 3).float()
    return torch.cat([targets, 0 * targets], 1) + noise * torch.randn(count, 6, generator=generator), targets


def test_the_linear_head_separates_what_can_be_separated():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    features = 100 + 5 * torch.nn.functional.one_hot(labels, 3) + torch.randn(300, 3, generator=generator)
    head = fit_linear_head(features, torch.nn.functional.one_hot(labels, 3).float(), range(300))
    logits = features @ head["weight"].T + head["bias"]
    assert (logits.argmax(-1) == labels).float().mean() > 0.98


def test_the_linear_head_is_the_logistic_regression_of_a_library_at_the_same_penalty():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(200, 4, generator=generator)
    labels = (features[:, 0] + torch.randn(200, generator=generator) > 0).long()
    head = fit_linear_head(features, torch.nn.functional.one_hot(labels, 2).float(), range(200))
    standard = (features - features.mean(0)) / features.std(0)
    weight = (head["weight"] * features.std(0)).requires_grad_()
    bias = (head["bias"] + head["weight"] @ features.mean(0)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(standard @ weight.T + bias, labels)
    (loss + head["penalty"] * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3  # the penalised loss is flat there
    assert bias.grad.abs().max() < 1e-3


def test_rows_of_zeros_do_not_count_for_the_linear_head():
    features = torch.randn(100, 3, generator=torch.Generator().manual_seed(2))
    targets = torch.nn.functional.one_hot((features[:, 0] > 0).long(), 2).float()
    groups = range(100)
    padded = torch.cat([features, 0 * features]), torch.cat([targets, 0 * targets]), [*groups, *groups]
    head, other = fit_linear_head(features, targets, groups), fit_linear_head(*padded)
    assert torch.equal((features @ head["weight"].T + head["bias"]).argmax(-1), targets.argmax(-1))
    assert torch.equal((features @ other["weight"].T + other["bias"]).argmax(-1), targets.argmax(-1))


# Where it is fitted, and how many samples at once


def plain_fit(features: torch.Tensor, targets: torch.Tensor, groups: range) -> dict[str, torch.Tensor]:
    """The same fit with everything in memory, standardised once and each loss in one expression."""
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    standard = (features - mean) / scale
    held_out = torch.unique(torch.tensor(groups), return_inverse=True)[1] % 5 == 0

    def loss_of(chosen, weight, bias):
        logs = torch.nn.functional.log_softmax(standard[chosen] @ weight.T + bias, -1)
        return -(targets[chosen] * logs).sum() / targets[chosen].sum().clamp_min(1)

    def minimise(chosen, penalty, start):
        weight, bias = (part.clone().requires_grad_() for part in start)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=100, tolerance_change=1e-5, line_search_fn="strong_wolfe"
        )

        def closure():
            optimiser.zero_grad()
            loss = loss_of(chosen, weight, bias) + penalty * weight.square().sum()
            loss.backward()
            return float(loss.detach())

        optimiser.step(closure)
        return weight.detach(), bias.detach()

    start = torch.zeros(targets.shape[1], features.shape[1]), torch.zeros(targets.shape[1])
    path, losses = {}, {}
    for penalty in PENALTIES:
        path[penalty] = start = minimise(~held_out, penalty, start)
        losses[penalty] = float(loss_of(held_out, *start))
        if losses[penalty] > min(losses.values()):
            break
    penalty = min(losses, key=losses.__getitem__)
    weight, bias = minimise(torch.ones_like(held_out), penalty, path[penalty])
    weight = weight / scale
    return {"weight": weight, "bias": bias - weight @ mean, "held_out_losses": torch.tensor(list(losses.values()))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_the_head_is_the_plain_one_to_the_bit(dtype):
    features, targets = noisy_classes(150, noise=0.7)
    features = features.to(dtype)
    expected = plain_fit(features.float(), targets, range(150))
    for given in (targets, targets.to(torch.uint8)):
        with torch.inference_mode():
            head = fit_linear_head(features, given, range(150), torch.device("cpu"))
        assert all(torch.equal(head[name], value) for name, value in expected.items())


@pytest.mark.parametrize("rows_at_once", [7, 64, 149])
def test_the_number_of_samples_at_once_does_not_matter(rows_at_once):
    features, targets = noisy_classes(150, noise=0.7)
    features = 3 + 10 * features
    whole, parts = (fit_linear_head(features, targets, range(150), rows_at_once=rows) for rows in (None, rows_at_once))
    assert torch.equal(whole["penalty"], parts["penalty"])
    assert torch.allclose(whole["held_out_losses"], parts["held_out_losses"], rtol=1e-3)
    logits = [features @ head["weight"].T + head["bias"] for head in (whole, parts)]
    assert (logits[0].softmax(-1) - logits[1].softmax(-1)).abs().max() < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_head_is_that_of_the_cpu_but_for_rounding():
    features, targets = noisy_classes(150, noise=0.7)
    here, there = (fit_linear_head(features, targets, range(150), torch.device(name)) for name in ("cpu", "cuda"))
    assert torch.equal(here["penalty"], there["penalty"])
    logits = [features @ head["weight"].T + head["bias"] for head in (here, there)]
    assert (logits[0].softmax(-1) - logits[1].softmax(-1)).abs().max() < 1e-2


# The grid


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_held_out_loss_is_that_of_a_fit_on_the_other_samples_by_a_library(penalty):
    features, targets = noisy_classes(100, noise=0.7)
    head = fit_linear_head(features, targets, range(100))
    standard = ((features - features.mean(0)) / features.std(0)).double().numpy()
    held_out, labels = np.arange(100) % 5 == 0, targets.argmax(-1).numpy()

    def cross_entropy(flat, chosen):
        weight, bias = flat[:18].reshape(3, 6), flat[18:]
        logs = log_softmax(standard[chosen] @ weight.T + bias, axis=1)
        return -logs[np.arange(chosen.sum()), labels[chosen]].mean()

    found = minimize(lambda flat: cross_entropy(flat, ~held_out) + penalty * np.square(flat[:18]).sum(), np.zeros(21)).x
    ours = float(head["held_out_losses"][PENALTIES.index(penalty)])
    assert ours == pytest.approx(cross_entropy(found, held_out), rel=2e-3)


@pytest.mark.parametrize(("count", "noise"), [(40, 1.0), (400, 1.0), (400, 0.4)])
def test_the_penalty_of_the_least_held_out_loss_is_chosen_and_lies_inside_the_grid(count, noise):
    head = fit_linear_head(*noisy_classes(count, noise), range(count))
    best = int(head["held_out_losses"].argmin())
    assert float(head["penalty"]) == pytest.approx(PENALTIES[best])
    assert 0 < best < len(PENALTIES) - 1


def test_noise_calls_for_a_stronger_penalty():
    weak, strong = (fit_linear_head(*noisy_classes(200, noise), range(200))["penalty"] for noise in (0.3, 3.0))
    assert strong > weak


def test_samples_of_one_group_are_held_out_together():
    features, targets = noisy_classes(61, noise=3.0)
    copies, numbers = [torch.cat([each] * 5) for each in (features, targets)], list(range(61))
    together = fit_linear_head(*copies, numbers * 5)
    apart = fit_linear_head(*copies, range(305))  # four fifths of the copies of what is held out are fitted on
    assert apart["held_out_losses"].min() < together["held_out_losses"].min()
    assert together["penalty"] > apart["penalty"]


def test_whatever_the_groups_are_called_a_fifth_is_held_out():
    features, targets = noisy_classes(20, noise=1.0)
    plain, renamed = (
        fit_linear_head(features, targets, groups) for groups in (range(20), [5 * number + 3 for number in range(20)])
    )
    assert torch.equal(plain["held_out_losses"], renamed["held_out_losses"])


def test_one_sample_is_too_few():
    with pytest.raises(BadInputError, match="cannot be fitted on one training sample"):
        fit_linear_head(torch.ones(4, 3), torch.ones(4, 2), [0, 0, 0, 0])


def test_the_test_split_has_no_part_in_the_choice(tmp_path, monkeypatch, capsys):
    world = SmallWorld(tmp_path, monkeypatch, capsys)
    for split in ("train", "val"):
        imagenet(tmp_path / split)
    changes = {
        "task.method": "linear", "data": "imagenet", "data.root": str(tmp_path / "val"), "data.num_classes": "12",
        "data.num_images": "24", "data.training_root": str(tmp_path / "train"), "attention": "exact",
    }  # fmt: skip
    assert world.run(**changes)[0] == 0
    for path in (tmp_path / "val").rglob("*.JPEG"):
        Image.new("RGB", (40, 32)).save(path)
    assert world.run(**changes)[0] == 0
    first, second = (read_record(folder) for folder in world.records())
    assert first.identity["data"] != second.identity["data"]
    assert first.fitted == second.fitted
    assert len(list((world.results / ".fitted").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_without_mean_and_deviation_are_refused(value):
    features, targets = noisy_classes(30, noise=0.1)
    features[7, 2] = value
    with pytest.raises(BadInputError, match="features whose mean or deviation is not finite"):
        fit_linear_head(features, targets, range(30))
