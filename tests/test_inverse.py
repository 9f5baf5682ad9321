"""The landmark system: each way of solving it against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fnabench.attention.inverse import INVERSES, check_inverse, effective_values, macs_of_inverse, newton_schulz
from fnabench.errors import BadInputError


def softmax_matrix(size: int = 12, batch: tuple[int, ...] = (2, 3), sharpness: float = 2.0, seed: int = 0) -> Tensor:
    return (sharpness * torch.randn(*batch, size, size, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def values(size: int = 12, batch: tuple[int, ...] = (2, 3), seed: int = 1) -> Tensor:
    return torch.randn(*batch, size, 5, generator=torch.Generator().manual_seed(seed))


def one_by_one(matrices: Tensor) -> list[np.ndarray]:
    return [matrix.double().numpy() for matrix in matrices.flatten(0, -3)]


@pytest.mark.parametrize("num_iterations", [0, 1, 6])
def test_newton_schulz_is_the_published_iteration(num_iterations: int) -> None:
    a = softmax_matrix()
    for matrix, computed in zip(one_by_one(a), one_by_one(newton_schulz(a, num_iterations)), strict=True):
        one = np.eye(len(matrix))
        z = matrix.T / matrix.sum(0).max()
        for _ in range(num_iterations):
            az = matrix @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
        np.testing.assert_allclose(computed, z, atol=2e-5)


def test_newton_schulz_converges_to_the_inverse() -> None:
    a = softmax_matrix(sharpness=0.3) * 0.5 + torch.eye(12) * 0.5
    torch.testing.assert_close(newton_schulz(a, 20) @ a, torch.eye(12).expand_as(a), atol=1e-4, rtol=0)


def test_six_iterations_stay_small_where_a_sink_makes_the_pseudo_inverse_explode() -> None:
    logits = 0.05 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 6  # the sink takes nearly all attention of each row
    a, u = logits.softmax(-1), values(64, ())
    assert effective_values(a, u, "newton_schulz").abs().max() < 100
    assert effective_values(a, u, "pinv").abs().max() > 1000


def test_ridge_solves_the_normal_equations() -> None:
    a, u = softmax_matrix(), values()
    computed = effective_values(a, u, "ridge", ridge=1e-2)
    for matrix, right, found in zip(one_by_one(a), one_by_one(u), one_by_one(computed), strict=True):
        expected = np.linalg.solve(matrix.T @ matrix + 1e-2 * np.eye(len(matrix)), matrix.T @ right)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_stronger_ridge_gives_smaller_values() -> None:
    a, u = softmax_matrix(), values()
    sizes = [effective_values(a, u, "ridge", ridge=ridge).norm() for ridge in (1e-3, 1e-1, 10.0)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_pinv_is_the_pseudo_inverse_even_of_a_singular_matrix() -> None:
    a = softmax_matrix(batch=())
    a[5] = a[4]
    u = values(batch=())
    expected = np.linalg.pinv(a.double().numpy(), rcond=1e-5) @ u.double().numpy()
    np.testing.assert_allclose(effective_values(a, u, "pinv").numpy(), expected, atol=1e-2)


@pytest.mark.parametrize("inverse", INVERSES)
def test_a_matrix_is_solved_the_same_beside_any_others(inverse: str) -> None:
    a, u = softmax_matrix(), values()
    a[1, 2] = softmax_matrix(batch=(), sharpness=8.0)  # very different column sums
    together = effective_values(a, u, inverse)
    for image, head in ((0, 0), (1, 1), (1, 2)):
        alone = effective_values(a[image, head], u[image, head], inverse)
        torch.testing.assert_close(together[image, head], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("inverse", INVERSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_come_in_fp32_and_row_by_row(inverse: str, dtype: torch.dtype) -> None:
    a, u = softmax_matrix().to(dtype), values().to(dtype)
    computed = effective_values(a, u, inverse)
    assert computed.dtype == torch.float32
    assert computed.is_contiguous()
    assert computed.isfinite().all()


@pytest.mark.parametrize("inverse", INVERSES)
def test_the_inputs_are_left_alone(inverse: str) -> None:
    a, u = softmax_matrix(), values()
    before = a.clone(), u.clone()
    effective_values(a, u, inverse)
    assert torch.equal(a, before[0])
    assert torch.equal(u, before[1])


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (64, 64), (128, 64), (256, 256), (1024, 256)])
def test_the_least_ridge_is_enough_for_rows_of_few_kinds(rows: int, columns: int) -> None:
    least = 1.001 * rows * torch.finfo(torch.float32).eps
    check_inverse("ridge", 6, least, rows)
    with pytest.raises(BadInputError, match=f"of {rows} landmarks in fp32"):
        check_inverse("ridge", 6, least / 2, rows)
    for kinds in (1, 2, 5, 20):
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            few = (3 * torch.randn(kinds, columns, generator=generator)).softmax(-1)
            a = few[torch.randint(kinds, (rows,), generator=generator)]
            u = torch.randn(rows, 5, generator=generator)
            assert effective_values(a, u, "ridge", ridge=least).isfinite().all()


def test_an_unknown_inverse_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInputError, match="inverse=lu is not known; allowed: newton_schulz, ridge, pinv"):
        effective_values(softmax_matrix(), values(), "lu")
    with pytest.raises(BadInputError, match="inverse=lu"):
        macs_of_inverse("lu", 8, 8, 6)
