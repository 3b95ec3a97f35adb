"""What a loss looks like around weights that were trained: per-example gradient norms, and the Hessian's smallest eigenvalue.

    ρ     = max_i ‖∇ℓ_i‖ over the trained entries         (one backward an example)
    Λ_min = λ_min(∇²(1/n) Σ_i ℓ_i) over the trained entries   (Lanczos on Hessian-vector products, two backwards a batch)

Lanczos keeps all its vectors orthogonal by two Gram–Schmidt passes (Parlett 1980), so no ghost eigenvalues appear; `steps`
vectors are held. A Ritz value is never below the true λ_min, and an eigenvalue lies within `residual` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.delta.snapshot import Snapshot
from gossamer.errors import BadData, BadPlan

Batch = Mapping[str, Any]
Loss = Callable[[Batch], Tensor]  # mean loss over the examples of a batch, differentiable
Product = Callable[[Tensor], Tensor]  # v → A v, both [size]


@dataclass(frozen=True)
class Eigenvalue:
    """A Ritz value, ‖A x − value·x‖ for its unit vector x, and the products that it took."""

    value: float
    residual: float
    steps: int


@dataclass(frozen=True)
class Entries:
    """Which entries of which parameters are looked at, in one order, as vectors [size].

    `where` maps a name to a parameter and the flat indices [k_i] int64 that count, or None for all of it.
    """

    where: Mapping[str, tuple[nn.Parameter, Tensor | None]]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter, _ in self.where.values()]

    @property
    def size(self) -> int:
        return sum(p.numel() if found is None else found.numel() for p, found in self.where.values())

    def gather(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """The entries of tensors that are shaped as the parameters are (None: zeros), one behind another."""
        parts = []
        for (parameter, found), tensor in zip(self.where.values(), tensors, strict=True):
            flat = torch.zeros_like(parameter).reshape(-1) if tensor is None else tensor.reshape(-1)
            parts.append(flat if found is None else flat[found.to(flat.device)])
        return torch.cat(parts)

    def scatter(self, vector: Tensor) -> list[Tensor]:
        """Tensors shaped as the parameters are, 0 where no entry is."""
        made, at = [], 0
        for parameter, found in self.where.values():
            count = parameter.numel() if found is None else found.numel()
            part = vector[at : at + count].to(parameter.dtype)
            at += count
            if found is not None:
                part = torch.zeros_like(parameter).reshape(-1).index_copy(0, found.to(parameter.device), part)
            made.append(part.reshape(parameter.shape))
        return made


def gradient_norms(model: nn.Module, entries: Entries, examples: Iterable[Batch], loss: Loss) -> list[float]:
    """‖∇ℓ_i‖ over the entries, one for each example; the model in eval mode, and left as it was.

    Args:
        examples: batches of one example each.

    Raises:
        BadPlan: a gradient that is not finite.
    """
    norms = []
    with _watching(model, entries):
        for one in examples:
            found = torch.autograd.grad(loss(one), entries.parameters, allow_unused=True)
            norms.append(float(entries.gather(found).double().norm()))
    if not all(map(_finite, norms)):
        raise BadPlan("a gradient is NaN or infinite; these weights have no gradient norms")
    return norms


def smallest_curvature(
    model: nn.Module,
    entries: Entries,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    steps: int = 40,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Eigenvalue:
    """Λ_min of the Hessian of the mean loss over the entries; the model in eval mode, and left as it was.

    The model must be twice differentiable: fused attention is not, so call this inside `select.attention.plain_attention`.

    Args:
        batches: tensors with the examples in dimension 0; gone through once a step, so a list, not an iterator.
        steps, tolerance, seed: see `lanczos`.

    Raises:
        BadData: no batches. BadPlan: see `lanczos`.
    """
    batches = list(batches)
    sizes = [_size(batch) for batch in batches]
    if not batches:
        raise BadData("the Hessian needs examples; the batches are empty")

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        directions = entries.scatter(vector)
        for batch, size in zip(batches, sizes, strict=True):
            first = torch.autograd.grad(loss(batch), entries.parameters, create_graph=True, allow_unused=True)
            pairs = [(g, d) for g, d in zip(first, directions, strict=True) if g is not None and g.requires_grad]
            if pairs:
                along = sum(((g * d).sum() for g, d in pairs), start=torch.zeros((), device=vector.device))
                second = torch.autograd.grad(along, entries.parameters, allow_unused=True)
                total += entries.gather(second).to(total.dtype) * (size / sum(sizes))
        return total

    some = entries.parameters[0]
    with _watching(model, entries):
        return lanczos(product, entries.size, steps=steps, tolerance=tolerance, seed=seed, like=some)


def lanczos(
    product: Product,
    size: int,
    *,
    steps: int = 40,
    tolerance: float = 1e-3,
    seed: int = 0,
    like: Tensor | None = None,
) -> Eigenvalue:
    """The smallest eigenvalue of a symmetric matrix [size, size] that is known by its products.

    Args:
        product: v [size] → A v [size].
        steps: at most so many products, and vectors of `size` held.
        tolerance: done when the residual falls below this share of the largest |eigenvalue| seen.
        seed: of the first vector.
        like: a tensor of the dtype and device to work in; float64 on the CPU by default.

    Raises:
        BadPlan: no entries, fewer than one step, or a product that is not finite.

    >>> diagonal = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    >>> round(lanczos(lambda v: diagonal * v, 3, tolerance=1e-9).value, 6)
    -1.0
    """
    if size < 1 or steps < 1:
        raise BadPlan(f"Lanczos over {size} entries in {steps} steps; both must be 1 or more")
    like = torch.zeros((), dtype=torch.float64) if like is None else like
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = [(start / start.norm()).to(like.device, like.dtype)]
    diagonal: list[float] = []
    beside: list[float] = []
    value, residual = 0.0, 0.0
    for step in range(min(steps, size)):
        following = product(basis[-1])
        diagonal.append(float(torch.dot(following.double(), basis[-1].double())))
        for _ in range(2):  # full reorthogonalization: one pass leaves what cancellation hides
            for known in basis:
                following = following - torch.dot(following, known) * known
        length = float(following.double().norm())
        if not _finite(length + diagonal[-1]):
            raise BadPlan("a Hessian-vector product is NaN or infinite; the curvature there cannot be known")
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            off = torch.tensor(beside, dtype=torch.float64)
            small += torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(small)
        value, residual = float(values[0]), length * abs(float(vectors[-1, 0]))
        largest = float(values.abs().max())
        exhausted = length <= 10 * torch.finfo(like.dtype).eps * largest  # nothing is left outside the basis
        if exhausted or residual <= tolerance * largest or step + 1 == min(steps, size):
            break
        beside.append(length)
        basis.append(following / length)
    return Eigenvalue(value, residual, len(diagonal))


@contextmanager
def _watching(model: nn.Module, entries: Entries) -> Iterator[None]:
    """The model in eval mode, gradients wanted of the entries' parameters only; then as it was."""
    if not entries.where:
        raise BadPlan("there are no entries to look at; name one parameter or more")
    before = Snapshot(model, ())
    try:
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in entries.parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        before.restore()


def _size(batch: Batch) -> int:
    return next(value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.dim())


def _finite(number: float) -> bool:
    return number - number == 0.0
