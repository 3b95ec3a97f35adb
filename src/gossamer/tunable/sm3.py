"""SM3: AdaGrad whose second moments are one number a row and one a column (Anil et al. 2019, SM3-II, without momentum).

    ν_ij = min(row_i, col_j) + g_ij²;   row_i = max(row_i, max_j ν_ij), col_j alike;   θ_ij −= lr · g_ij / √ν_ij

Works on ordinary parameters (vectors get a number an entry) and on sparse leaves of matrices, which say where their
values lie by an attribute `entries` = (shape of the matrix, flat indices [k]). Weight decay is decoupled. The old
row_i takes part in its maximum, so that a row remembers entries which have left the support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import BadPlan


class SM3(torch.optim.Optimizer):
    """See the module.

    Args:
        params: parameters or groups, of any float dtype; accumulators are float32 (float64 for float64).
        lr: learning rate. weight_decay: share of lr by which values decay toward 0 (for δ: toward the base).
    """

    def __init__(self, params: Iterable[Any], lr: float, *, weight_decay: float = 0.0) -> None:
        if lr < 0 or weight_decay < 0:
            raise BadPlan(f"lr={lr:g}, weight_decay={weight_decay:g}: neither may be negative")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; but accumulators keep their dtype, where torch would round them to that of the weights."""
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        for i, kept in state_dict["state"].items():
            self.state[order[i]] = {name: t.to(order[i].device, copy=True) for name, t in kept.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad.to(torch.promote_types(p.dtype, torch.float32))
                nu = _accumulate(self.state[p], g, getattr(p, "entries", None))
                update = torch.where(
                    nu > 0, g * nu.rsqrt(), 0.0
                )  # 0 where no gradient has come, or none whose square is
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(update.to(p.dtype), alpha=-float(group["lr"]))
        return loss


def _accumulate(state: dict[str, Tensor], g: Tensor, entries: tuple[tuple[int, int], Tensor] | None) -> Tensor:
    """ν of every entry, after the state has taken in g²."""
    if entries is None and g.dim() != 2:
        state["all"] = state.get("all", torch.zeros_like(g)) + g.square()
        return state["all"]
    rows, columns = entries[0] if entries else g.shape
    row = state.setdefault("row", g.new_zeros(rows))  # [rows]
    column = state.setdefault("column", g.new_zeros(columns))  # [columns]
    if entries is None:
        nu = torch.minimum(row[:, None], column[None, :]) + g.square()
        torch.maximum(row, nu.amax(1), out=row)
        torch.maximum(column, nu.amax(0), out=column)
        return nu
    indices = entries[1].to(g.device)
    i, j = indices // columns, indices % columns
    nu = torch.minimum(row[i], column[j]) + g.square()
    row.scatter_reduce_(0, i, nu, "amax")
    column.scatter_reduce_(0, j, nu, "amax")
    return nu
