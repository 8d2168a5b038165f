"""What would be timed, in which order, and how long it may take: decided before anything is built."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from ..case import Workload
from ..registry import CaseEntry

COPIES = 3.5
"""Copies of a module's weights that are alive while it is timed: two originals, the replacement, and room to work."""
MEMORY_SHARE = 0.6
"""Part of the free memory that a job may take."""
SECONDS_A_PAIR = (0.4, 5.0)
"""Least and most time for one comparison."""
BUILD_RATE = 4e8
"""Bytes of weights a second that are randomised, copied and run once before timing; for estimates only."""
COMPILE_SECONDS = 30.0
"""What compiling a layer is taken to cost; for estimates only."""
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}


@dataclass(frozen=True)
class Job:
    """One workload in one dtype. ``compiled``: its columns are those of ``torch.compile``."""

    entry: CaseEntry
    workload: Workload
    dtype: str
    compiled: bool = False

    @property
    def key(self) -> str:
        compiled = " compiled" if self.compiled else ""
        return f"{self.entry.name}: {self.workload.name} {self.workload.phase} {self.workload.shape} {self.dtype}{compiled}"

    @property
    def weight_bytes(self) -> float:
        return self.workload.weight_bytes * (1.0 if self.dtype == "float32" else 0.5)

    def estimate(self, seconds_a_pair: float) -> float:
        """Seconds that this job is likely to take."""
        prepare = 2 * COMPILE_SECONDS if self.compiled else 0.0
        return 0.5 + self.workload.weight_bytes / BUILD_RATE + 2 * seconds_a_pair + prepare


@dataclass(frozen=True)
class JobPlan:
    """Jobs in order of worth, and those that were left out, with the reason."""

    jobs: tuple[Job, ...]
    left_out: tuple[tuple[Job, str], ...]
    seconds_a_pair: float

    @property
    def estimate(self) -> float:
        return sum(job.estimate(self.seconds_a_pair) for job in self.jobs)


def plan_jobs(entries: Iterable[CaseEntry], *, device: str, budget: float) -> JobPlan:
    """Fit the workloads of ``entries`` into ``budget`` seconds and the memory that is free.

    Every case's first workload comes first, so that a small budget still says something of each.
    """
    jobs = _in_order_of_worth(entries, device)
    room = psutil.virtual_memory().available * MEMORY_SHARE
    small = [job for job in jobs if job.weight_bytes * COPIES <= room]
    left_out = [(job, f"needs {job.weight_bytes * COPIES / 2**30:.0f} GiB") for job in jobs if job not in small]
    least, most = SECONDS_A_PAIR
    plain = max(sum(not job.compiled for job in small), 1)
    a_pair = min(max(budget / plain / 4, least), most)
    taken: list[Job] = []
    spent = 0.0
    for job in small:
        cost = job.estimate(a_pair)
        if taken and spent + cost > budget:
            left_out.append((job, f"no time left in a budget of {budget:.0f} s"))
        else:
            taken.append(job)
            spent += cost
    return JobPlan(tuple(taken), tuple(left_out), a_pair)


def _in_order_of_worth(entries: Iterable[CaseEntry], device: str) -> list[Job]:
    ranked: list[tuple[tuple[int, int, int], Job]] = []
    for entry in entries:
        for place, workload in enumerate(entry.load().workloads):
            for rank, dtype in enumerate(DTYPES[device]):
                ranked.append(((0, place + rank, place), Job(entry, workload, dtype)))
            ranked.append(((1, place, 0), Job(entry, workload, "float32", compiled=True)))
    return [job for _, job in sorted(ranked, key=lambda one: one[0])]
