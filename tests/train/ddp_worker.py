"""One of two processes of the DDP tests: trains a delta by some method with gloo and writes what it saw."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import gossamer as gs
from tests.tiny import batches, classifier


def main(rank: int, folder: Path, method: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = classifier()
    sent: list[int] = []

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().numel())
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    options = {"density": 0.02, "data": batches(2), "warmup": 3} if method == "fisher" else {}
    with gs.tune(model, method, **options) as tuned:
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, count)
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2, weight_decay=0.1)
        for batch in batches(4, seed=10 + rank):  # other data on each rank
            wrapped(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        head = sum(p.numel() for p in tuned.head.values())
        facts = {"sent": sum(sent), "steps": 4, "expected": tuned.k + head}
        tuned.delta("fp32").save(folder / f"rank{rank}.safetensors")
    torch.save(facts, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def steps(rank: int, folder: Path, method: str) -> None:
    """A method that does something around each step: what it draws and chooses must be the same on every rank."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = classifier().eval()
    with gs.tune(model, method, **STEPS[method]) as tuned:
        torch.manual_seed(rank)  # other masks on each rank, unless they agree on them
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
        for batch in batches(12, seed=10 + rank):
            wrapped(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        tuned.delta("fp32").save(folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()


STEPS: dict[str, dict[str, Any]] = {
    "spiel-ag": {"density": 0.5, "every": 4, "window": 3, "total_steps": 12},
    "child-f": {},
}

if __name__ == "__main__":
    if sys.argv[3] in STEPS:
        steps(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    else:
        main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
