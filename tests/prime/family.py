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
