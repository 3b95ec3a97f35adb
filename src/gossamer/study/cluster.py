"""Where cells run on a cluster: each is a Ray task, with retries where a machine is lost, and the cores and GPU it asks for.

This process alone writes results; workers need the data folder at the same place, and gossamer. Needs the extra `cluster`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from gossamer.errors import BadPlan
from gossamer.study.job import Job, died, work
from gossamer.study.ledger import Cell
from gossamer.study.workers import hush

RETRIES = 2  # where a worker or its machine dies; a cell that fails by itself is a result


def on_ray(
    jobs: Iterable[Job], *, address: str | None, cpus: float, began: Callable[[Job], None]
) -> Iterator[tuple[Job, Cell]]:
    """Runs cells on Ray; they come as they are done.

    Args:
        address: None starts a cluster on this machine; "auto" joins the one that runs here; else where its head is.
        cpus: that a cell asks for. Where the cluster has GPUs, each cell asks for one.

    Raises:
        BadPlan: no ray, no cluster at the address, or none of its machines has what a cell asks for.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadPlan(
            "--ray needs ray, which is not installed; install it with: pip install 'gossamer[cluster]'"
        ) from None
    if not cpus > 0:
        raise BadPlan(f"--cpus {cpus}: expected a number above 0")
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False,
                     configure_logging=False)  # fmt: skip
        except (ConnectionError, ValueError) as error:
            raise BadPlan(
                f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or give --ray local"
            ) from None
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if cpus > most:
            raise BadPlan(f"--cpus {cpus:g}: no machine of the cluster has that many cores (the largest: {most:g})")
        asked = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_work)
        limit = (
            max(1, int(ray.cluster_resources().get("CPU", 1) / cpus)) * 2
        )  # enough that no core waits for this process
        yield from _gather(ray, asked, jobs, limit, began)
    finally:
        if ours:
            ray.shutdown()


def _gather(
    ray: Any, asked: Any, jobs: Iterable[Job], limit: int, began: Callable[[Job], None]
) -> Iterator[tuple[Job, Cell]]:
    waiting, running = iter(jobs), {}
    while True:
        for job in islice(waiting, limit - len(running)):
            running[asked.remote(replace(job, scratch=None))] = job  # files of a cell lie on the machine that runs it
            began(job)
        if not running:
            return
        (first,), _ = ray.wait(list(running), num_returns=1)
        job = running.pop(first)
        try:
            cell = ray.get(first)
        except ray.exceptions.RayError as error:
            cell = died(job, f"Ray could not finish it: {str(error).strip().splitlines()[0]}")
        yield job, cell


def _work(job: Job) -> Cell:
    hush()
    return work(job)
