"""Llama shapes trained sparsely at density 0.1 %, 1 × 64 tokens: 1 billion weights in float32, 8 billion in bfloat16.

Each model is built from its configuration (on the meta device, then filled with a cheap pattern, so that there is never
a second copy) and trained for a few steps by AdamW in a process of its own, whose peak of resident memory is reported;
the random rule chooses, the change trains in float32. A model that does not fit into the memory at hand is left out.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import nn

import gossamer as gs
from benchmarks.common import Figure

GIB = 1 << 30
LIMIT = 24.0  # GiB
DENSITY = 0.001
SHAPES: dict[str, dict[str, Any]] = {
    "1 billion": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                  "num_key_value_heads": 8, "vocab_size": 32000, "dtype": torch.float32},
    "8 billion": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                  "num_key_value_heads": 8, "vocab_size": 128256, "dtype": torch.bfloat16},
}  # fmt: skip


def measure(*, quick: bool = False) -> list[Figure]:
    """Peak memory and times of both, one after the other; `quick` takes fewer steps, and the smaller only."""
    figures = []
    for name in list(SHAPES)[: 1 if quick else None]:
        need = 1.15 * _weights(name) * SHAPES[name]["dtype"].itemsize / GIB
        if need > (free := _free()):
            print(f"scale: {name} left out: needs about {need:.0f} GiB, {free:.0f} GiB are free", file=sys.stderr)
            continue
        command = [sys.executable, "-m", "benchmarks.scale", name, str(1 if quick else 3)]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        figures += [
            Figure(f"{name}: peak resident memory", found["peak"], "GiB", LIMIT),
            Figure(f"{name}: beyond the loaded model", found["peak"] - found["loaded"], "GiB"),
            *(
                Figure(f"{name}: {what}", found[what], "s")
                for what in ("build", "tune", "first step", "step", "restore")
            ),
            Figure(f"{name}: weights, billion", found["weights"] / 1e9),
            Figure(f"{name}: weights that train, million", found["k"] / 1e6),
            Figure(f"{name}: loss of the last step / first", found["losses"][-1] / found["losses"][0], "×"),
        ]
    return figures


def build(name: str, **changes: Any) -> nn.Module:
    """A Llama shape with finite activations: matrices ± 1/√inputs in a repeated pattern, norms 1."""
    import transformers

    shape = {**SHAPES[name], **changes}
    dtype = shape.pop("dtype")
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=False, max_position_embeddings=2048, use_cache=False)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(dtype)
    model.to_empty(device="cpu")
    buffers = type(model.model.rotary_emb)(config)  # made by the constructor, so that the meta device has lost them
    model.model.rotary_emb = buffers
    pattern = torch.empty((1 << 20) + 1).uniform_(-1.7, 1.7, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            for part in parameter.view(-1).split(pattern.numel()):
                torch.mul(pattern[: part.numel()], parameter.shape[1] ** -0.5, out=part)
    return model


def train(name: str, steps: int) -> dict[str, Any]:
    """Builds, tunes, trains and restores; what that took."""
    found: dict[str, Any] = {"losses": []}
    clock = _Clock(found)
    model = build(name).train()
    found["weights"] = sum(p.numel() for p in model.parameters())
    clock.lap("build")
    found["loaded"] = _peak()
    ids = torch.randint(0, SHAPES[name]["vocab_size"], (1, 64), generator=torch.Generator().manual_seed(0))
    with gs.tune(model, "random", density=DENSITY) as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-3, weight_decay=0.0)
        found["k"] = tuned.k
        clock.lap("tune")
        for i in range(1 + steps):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found["losses"].append(loss.item())
            if i == 0:
                clock.lap("first step")
        clock.lap("step", share=steps)
    clock.lap("restore")
    return {**found, "peak": _peak()}


class _Clock:
    def __init__(self, found: dict[str, Any]) -> None:
        self.found, self.last = found, time.perf_counter()

    def lap(self, name: str, share: int = 1) -> None:
        now = time.perf_counter()
        self.found[name], self.last = (now - self.last) / share, now
        print(f"{name}: {self.found[name]:.1f} s", file=sys.stderr, flush=True)


def _weights(name: str) -> int:
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPES[name], tie_word_embeddings=False))
    return sum(p.numel() for p in model.parameters())


def _peak() -> float:
    """GiB resident at most. getrusage would count the process that started this one, until it began its own program."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / GIB
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def _free() -> float:
    """GiB that a new process may take, as Linux says; elsewhere all of the memory."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / GIB
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


if __name__ == "__main__":
    import transformers

    transformers.logging.set_verbosity_error()
    print(json.dumps(train(sys.argv[1], int(sys.argv[2]))))
