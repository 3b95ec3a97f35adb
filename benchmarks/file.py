"""The file of a delta of MiniLM: bytes of its positions against the entropy bound, bytes of the whole, and time.

The bound is Σ_i log2 C(m_i, k_i) bits over tensors: what naming k_i of m_i entries costs if all sets are equally
likely. The whole file, without a head, is compared with its k values in bf16. Timed: save durably, load, validate.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from scipy.special import gammaln

import gossamer as gs
from benchmarks.common import DENSITY, Figure, Run, batch, interleave, minilm
from gossamer.delta.base import base_parameters, identity
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Dense, Sparse
from gossamer.delta.support import Support
from gossamer.select.change import change
from gossamer.select.magnitude import magnitude
from gossamer.select.uniform import uniform


def measure(*, quick: bool = False) -> list[Figure]:
    """Uniform supports of three densities, and two clustered ones."""
    model = minilm()
    parameters = base_parameters(model)
    sizes = {name: p.numel() for name, p in parameters.items()}
    m = sum(sizes.values())
    k = int(DENSITY * m)
    clustered = {"magnitude": magnitude(parameters, k), "change": _moved(model, k)}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        for density in (DENSITY, 0.0001, 0.08):
            delta = _delta(model, uniform(parameters, int(density * m)))
            whole = delta.save(path) / (2 * delta.k)
            wanted = density == DENSITY
            figures += [
                Figure(f"positions / bound: {density:.2%}", _positions(path) / _bound(delta, sizes), "×", 1.02),
                Figure(f"file / values alone: {density:.2%}", whole, "×", 2.0 if wanted else None),
                Figure(f"save + load: {density:.2%}", _seconds(delta, path, quick), "s", 0.2 if wanted else None),
            ]
            path.unlink()
        for name, support in clustered.items():
            delta = _delta(model, support)
            delta.save(path, force=True)
            ratio = _positions(path) / _bound(delta, sizes)
            figures.append(Figure(f"positions / bound: {name}, {DENSITY:.2%}", ratio, "×", 1.08))
    return figures


def _delta(model: torch.nn.Module, support: Support) -> Delta:
    """A delta of random bf16 values, no head: what is measured depends on their number only."""
    torch.manual_seed(0)
    shapes = {name: tuple(p.shape) for name, p in base_parameters(model).items()}
    patches = {n: Sparse(shapes[n], where, torch.randn(where.numel()).bfloat16()) for n, where in support.items()}
    known = identity(model)
    about = {"method": "random", "seed": 0, "options": {}, "m": sum(map(math.prod, shapes.values())), "k": support.k}
    return Delta.of(patches, base=known, about=about)


def _bound(delta: Delta, sizes: dict[str, int]) -> float:
    """Σ_i log2 C(m_i, k_i), in bytes."""
    found = ((sizes[name], where.numel()) for name, where in delta.support.items())
    return sum(gammaln(m + 1) - gammaln(k + 1) - gammaln(m - k + 1) for m, k in found) / math.log(2) / 8


def _positions(path: Path) -> int:
    with safe_open(str(path), "pt") as file:
        return file.get_tensor("sparse.bfloat16.positions").nbytes


def _seconds(delta: Delta, path: Path, quick: bool) -> float:
    def both() -> None:
        delta.save(path, force=True)
        gs.load(path)

    return interleave({"both": both}, rounds=3 if quick else 15).median("both")


def _moved(model: torch.nn.Module, k: int, steps: int = 5) -> Support:
    """The k weights that a few steps of full fine-tuning move furthest, as lt-sft chooses them."""
    with gs.tune(model, "full") as tuned:
        model.train()
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-4, weight_decay=0.0)
        for seed in range(steps):
            Run(model, optimizer, {}, batch(seed))()
        moved = tuned.delta("fp32")
    patches = {name: patch for name, ((_, patch),) in moved.terms.items()}
    return change({name: patch.values for name, patch in patches.items() if isinstance(patch, Dense)}, k)
