"""Where cells run on this machine: in this process, or in several. A worker that dies takes its cell with it, no other.

Workers are fresh processes that end with the one that started them, however that ends, so that a study that was killed
and is started again meets none of its own.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

from gossamer.study.job import Job, died, work
from gossamer.study.ledger import Cell
from gossamer.study.memory import settled_memory
from gossamer.tasks.pretrained import silence
from gossamer.train.callback import Progress

Done = tuple[Job, Cell]
Way = Callable[[Iterable[Job]], Iterator[Done]]


def serially(jobs: Iterable[Job], *, progress: Progress | None = None, began: Callable[[Job], None]) -> Iterator[Done]:
    """One after another, here."""
    for job in jobs:
        began(job)
        yield job, work(job, progress)


def processes(jobs: Iterable[Job], *, count: int, began: Callable[[Job], None]) -> Iterator[Done]:
    """As many at a time as `count`, each in a process that lives for many cells; cells come as they are done."""
    waiting, busy, idle = iter(jobs), {}, []
    threads = max(1, (os.cpu_count() or 1) // count)
    try:
        while True:
            for job in islice(waiting, count - len(busy)):
                worker = idle.pop() if idle else _Worker(threads)
                worker.send(job)
                busy[worker.pipe] = worker, job
                began(job)
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker, job = busy.pop(pipe)  # type: ignore[arg-type]
                try:
                    cell = pipe.recv()  # type: ignore[union-attr]
                    idle.append(worker)
                except (EOFError, OSError):
                    cell = died(job, worker.why())
                yield job, cell
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.stop()


class _Worker:
    def __init__(self, threads: int) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen here when it dies

    def send(self, job: Job) -> None:
        self.pipe.send(job)

    def why(self) -> str:
        self.process.join()
        self.pipe.close()
        return (
            f"its process ended with status {self.process.exitcode} before it was done; if that is -9, the system may have "
            "killed it for memory: use fewer --jobs"
        )

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, threads: int) -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops us
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(threads)
    hush()
    with settled_memory():
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            pipe.send(work(job))


def _follow() -> None:
    """Ends this process when its parent ends."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def hush() -> None:
    """Silences what transformers and datasets would print in a worker."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    silence()
