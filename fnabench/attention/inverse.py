"""Solving the landmark system: effective values V' with A V' = U, where the rows of A sum to one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fnabench.errors import BadInputError, one_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

INVERSES = ("newton_schulz", "ridge", "pinv")


def check_inverse(inverse: str, num_iterations: int, ridge: float, num_rows: int) -> None:
    """Raise BadInputError for what `effective_values` cannot do with so many rows L."""
    if inverse not in INVERSES:
        raise one_of("inverse", inverse, INVERSES)
    if num_iterations < 0:
        raise BadInputError(f"num_iterations={num_iterations} must be at least 0")
    least = num_rows * torch.finfo(torch.float32).eps  # what rounding takes from the eigenvalues of A^T A
    if inverse == "ridge" and not ridge >= least:  # nor is NaN
        raise BadInputError(
            f"ridge={ridge} is less than rounding leaves of a system of {num_rows} landmarks in fp32; choose at least "
            f"{least:.1e}, or inverse=pinv, which has none"
        )


def effective_values(
    a: Float[Tensor, "*batch L M"],
    u: Float[Tensor, "*batch L D"],
    inverse: str,
    num_iterations: int = 6,
    ridge: float = 1e-3,
) -> Float[Tensor, "*batch M D"]:
    """V' in fp32, contiguous, by one of INVERSES; nothing depends on the other matrices of the batch.

    newton_schulz: the third-order iteration of Nystromformer, Z <- Z (13 I - AZ (15 I - AZ (7 I - AZ))) / 4 from
        Z = A^T / (largest column sum), for L = M. Six iterations do not converge on purpose: they regularise.
        4 M^3 MACs an iteration.
    ridge: (A^T A + r I)^-1 A^T U by Cholesky; r > 0 bounds what an ill-conditioned A can do.
    pinv: the exact pseudo-inverse by SVD; explodes where one sink takes most of the attention.
    """
    a, u = a.float(), u.float()
    if inverse == "newton_schulz":
        values: Tensor = newton_schulz(a, num_iterations) @ u
        return values
    if inverse == "ridge":
        gram = a.mT @ a
        gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
        factor = torch.linalg.cholesky_ex(gram).L
        solved: Tensor = torch.cholesky_inverse(factor) @ (a.mT @ u)  # twice as fast on a CPU as two triangular solves
        return solved
    if inverse == "pinv":
        least_squares: Tensor = torch.linalg.pinv(a) @ u
        return least_squares
    raise one_of("inverse", inverse, INVERSES)


def shrunken_ridge(
    a: Float[Tensor, "*batch L M"], u: Float[Tensor, "*batch L D"], ridge: float, weight: Float[Tensor, "*batch L"]
) -> Float[Tensor, "*batch M D"]:
    """The ridge solution of effective_values, times the largest share in [0, 1] that leave-one-out finds harmless.

    With K = A A^T + r I the solution is A^T K^-1 U, and K^-1 also tells, without cancellation, what the other rows
    predict of each one: P = U - K^-1 U / diag(K^-1). The share 2 <U, P> / <P, P> of that, rows weighted, is as wrong
    as predicting zeros, and any smaller one is better. Where it is above 1 the solution is left as it is.
    """
    kernel = a @ a.mT
    kernel.diagonal(dim1=-2, dim2=-1).add_(ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(kernel).L)  # [*batch, L, L]
    dual = inverse @ u
    predicted = u - dual / inverse.diagonal(dim1=-2, dim2=-1)[..., None]
    weighted = weight[..., None] * predicted
    agreement, size = 2 * (weighted * u).sum((-2, -1)), (weighted * predicted).sum((-2, -1))
    share = torch.where(agreement < size, (agreement / size).clamp_min(0), 1)  # what overflows is left as it is
    values: Tensor = a.mT @ (share[..., None, None] * dual)
    return values


def newton_schulz(a: Float[Tensor, "*batch M M"], num_iterations: int) -> Float[Tensor, "*batch M M"]:
    """The approximate inverse after `num_iterations` third-order Newton-Schulz steps."""
    shape, a = a.shape, a.reshape(-1, *a.shape[-2:])
    largest = a.sum(-2, keepdim=True).amax(-1, keepdim=True)
    z = a.mT / largest.clamp_min(torch.finfo(a.dtype).tiny)  # a matrix of zeros has the inverse zero
    for _ in range(num_iterations):
        az = a @ z
        rest = torch.baddbmm(az, az, az, beta=7, alpha=-1)  # AZ (7 I - AZ), without a product with the identity
        rest = torch.baddbmm(az, az, rest, beta=15, alpha=-1)
        z = torch.baddbmm(z, z, rest, beta=13 / 4, alpha=-1 / 4)
    return z.reshape(shape)


def round_values(values: Float[Tensor, "*batch M D"], dtype: torch.dtype) -> Float[Tensor, "*batch M D"]:
    """To the dtype of v; what fp16 cannot hold becomes its largest number, not infinity."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype) if dtype == torch.float16 else values.to(dtype)


def macs_of_inverse(
    inverse: str,
    num_landmarks: int,
    head_dim: int,
    num_iterations: int,
    num_rows: int | None = None,
    shrink: bool = False,
) -> int:
    """Multiply-accumulates of `effective_values` for one head, or of `shrunken_ridge`; `num_rows` is L where not M."""
    m, d, rows = num_landmarks, head_dim, num_rows or num_landmarks
    if inverse == "newton_schulz":
        return 4 * num_iterations * m**3 + m * m * d
    if inverse == "ridge" and shrink:  # the same with rows for columns
        return rows * rows * m + rows**3 // 2 + rows * rows * d + rows * m * d
    if inverse == "ridge":  # Gram matrix, Cholesky and inverse of the factor (M^3/6 + M^3/3), right-hand side, product
        return rows * m * m + m**3 // 2 + rows * m * d + m * m * d
    if inverse == "pinv":  # the SVD is counted as 10 products, LAPACK's usual figure
        return 10 * rows * m * m + rows * m * d
    raise one_of("inverse", inverse, INVERSES)
