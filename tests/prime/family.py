"""Small models and tasks for priming, with no pretrained part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.prime.episodes import Episodes


class Net(nn.Module):
    """Two layers and a head; the head is named out."""

    def __init__(self, inputs: int = 4, hidden: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down, self.out = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.down(torch.tanh(self.up(x)))))


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def collate(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])


def tasks(count: int = 3, size: int = 40, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, list]:
    """Task i: y = sin(w_i · x), the w_i close to each other."""
    rng = torch.Generator().manual_seed(seed)
    made = {}
    for i in range(count):
        w = torch.randn(4, generator=rng)
        x = torch.randn(size, 4, generator=rng)
        made[f"t{i}"] = list(zip(x.to(dtype), torch.sin(x @ w)[:, None].to(dtype), strict=True))
    return made


def episodes(inner_steps: int = 2, **changes: object) -> Episodes:
    settings = {"support": 6, "query": 8, "tasks": 2, "inner_steps": inner_steps}
    return Episodes(tasks(), collate, **{**settings, **changes})  # type: ignore[arg-type]


class Narrow(nn.Module):
    """A linear net through r hidden units: whatever follows `up` sees x by r directions only. The head is named out."""

    def __init__(self, inputs: int = 16, hidden: int = 4, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.up, self.down, self.out = (
            nn.Linear(a, b, bias=False) for a, b in ((inputs, hidden), (hidden, hidden), (hidden, 1))
        )
        for layer in (self.up, self.down, self.out):
            layer.weight.data = torch.randn(layer.weight.shape, generator=rng) / layer.in_features**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(self.up(x)))


def hidden_tasks(
    count: int, seed: int, *, secret: int, size: int = 80, inputs: int = 16, rank: int = 4
) -> dict[str, list]:
    """Task i: y = c_i · S x with x and c_i standard normal, and S, of orthonormal rows, the secret that all share.

    A net that sees x by other directions keeps a loss of the share of S that these miss, whatever else it learns. The
    mean task is 0: fitting all tasks with one net says nothing of S. Adapting to one at a time does.
    """
    s = torch.linalg.qr(torch.randn(inputs, rank, generator=torch.Generator().manual_seed(secret)))[0].T
    rng = torch.Generator().manual_seed(10_000 * secret + seed)
    made = {}
    for i in range(count):
        c, x = torch.randn(rank, generator=rng), torch.randn(size, inputs, generator=rng)
        made[f"t{i}"] = list(zip(x, (x @ s.T @ c)[:, None], strict=True))
    return made
