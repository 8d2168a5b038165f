"""What would be timed, in which order, and how long it may take: decided before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from policies.plans import CAPTURED, Plan

from ..case import Workload
from ..registry import CaseEntry

COPIES = {"layer": 4.5, "image": 2.5}
"""Copies of a module's weights that are alive while it is timed: of a layer two originals, two replacements, and room to
work; of a diffusion model one of each."""
COMPILED_COPIES = 4.0
"""Further copies beside compiled columns: a module for each of the three, and weights that freezing has laid out anew."""
MEMORY_SHARE = 0.6
"""Part of the free memory that a job may take."""
SECONDS_A_PAIR = {"cpu": (0.4, 5.0), "cuda": (0.8, 5.0)}
"""Least and most time for one comparison of short calls; long calls take what an interval needs. On a GPU a short call takes
as long as its launches, whose times scatter."""
CALLS_A_PAIR = 44
"""Calls that a comparison makes before it can give an interval: warm-up, eight blocks of four, and some room."""
CALLS_OF_A_JOB = 8
"""Calls beside the comparisons: counting operations, showing equality, memory at the peak."""
SETTLES = 0.75
"""Part of the time a comparison may take that it takes as a rule: most settle early. Measured over a full run."""
BUILD_RATE = 4e8
"""Bytes of weights a second that are randomised, copied and run once before timing; for estimates only."""
COMPILED_RANK = 2
"""Columns of ``torch.compile`` come as late as workloads that are two further down a case's list, but for those of the very
first workload: every run with time for them says something of compilers."""
COMPILE_SECONDS = 10.0
"""What compiling a layer is taken to cost; for estimates only."""
PLANS: dict[str, tuple[Plan, ...]] = {"cpu": (Plan.PACKED,), "cuda": CAPTURED}
"""Plans beside the automatic one by which a Transformer layer is timed."""
CLOCKS = {"cpu": 1, "cuda": 2}
"""Times that a comparison is made: end to end, and where that differs by the device's own clock."""
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float16", "float32")}
"""What each device is most used for comes first."""


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

    def pairs(self, device: str) -> int:
        """Comparisons that it makes on ``device``, at most: with the eager and the sdpa original, the only one, or two compiled
        ones; beside those as graphs, and of what was compiled with the original as it comes."""
        baselines = 2 if self.layer or self.compiled else 1
        return baselines * (1 + len(self.plans(device))) + self.compiled + (device == "cuda")

    def plans(self, device: str) -> tuple[Plan, ...]:
        """Plans beside the automatic one that it is timed by. No call with a cache that grows is captured."""
        grows = self.workload.past and not self.workload.room
        return () if not self.layer or (device == "cuda" and grows) else PLANS[device]

    @property
    def layer(self) -> bool:
        """Whether a Transformer layer is timed, of which packed weights are a column of their own, and not a whole
        diffusion model."""
        return self.kind == "layer"

    @property
    def kind(self) -> str:
        """``image`` or ``layer``."""
        return "image" if self.workload.phase == "image" else "layer"

    @property
    def memory_bytes(self) -> float:
        """Memory for all its columns."""
        return self.weight_bytes * (COPIES[self.kind] + COMPILED_COPIES * self.compiled)

    def call_seconds(self, rates: Mapping[str, float]) -> float:
        """Rough seconds of one call at ``rates`` (see ``measure_rates``)."""
        return self.workload.flops / rates[f"{self.kind} {self.dtype}"]


@dataclass(frozen=True)
class JobPlan:
    """Jobs in order of worth, and those that were left out, with the reason."""

    device: str
    budget: float
    rates: Mapping[str, float]
    """FLOP/s of this device, by kind of workload and dtype."""
    seconds_a_pair: float
    """For short calls."""
    jobs: tuple[Job, ...] = ()
    left_out: tuple[tuple[Job, str], ...] = ()

    @property
    def estimate(self) -> float:
        return sum(self.cost(job) for job in self.jobs)

    def pair_seconds(self, job: Job) -> float:
        """Seconds for one comparison of ``job``: enough for an interval, unless that takes the whole budget."""
        enough = CALLS_A_PAIR * job.call_seconds(self.rates)
        return min(max(self.seconds_a_pair, enough), max(self.seconds_a_pair, self.budget / 2))

    def cost(self, job: Job) -> float:
        """Seconds that ``job`` is likely to take."""
        build = 0.5 + job.workload.weight_bytes / BUILD_RATE + 2 * COMPILE_SECONDS * job.compiled
        comparing = SETTLES * CLOCKS[self.device] * job.pairs(self.device) * self.pair_seconds(job)
        return build + CALLS_OF_A_JOB * job.call_seconds(self.rates) + comparing


def plan_jobs(
    entries: Iterable[CaseEntry],
    *,
    device: str,
    budget: float,
    rates: Mapping[str, float],
    free_bytes: int,
    keys: Sequence[str] | None = None,
) -> JobPlan:
    """Fit the workloads of ``entries`` into ``budget`` seconds and the memory that is free, or take those of ``keys``: what a
    run that goes on was begun with.

    Every case's first workload comes first, so that a small budget still says something of each; the very first is taken
    however small the budget.
    """
    jobs = [job for job in _in_order_of_worth(entries, device) if f"{job.kind} {job.dtype}" in rates]
    room = free_bytes * MEMORY_SHARE
    small = [job for job in jobs if job.memory_bytes <= room]
    left_out = [(job, f"needs {job.memory_bytes / 2**30:.0f} GiB") for job in jobs if job not in small]
    least, most = SECONDS_A_PAIR[device]
    plain = max(sum(not job.compiled for job in small), 1)
    plan = JobPlan(device, budget, rates, seconds_a_pair=min(max(budget / plain / 4, least), most))
    if keys is not None:
        return replace(plan, jobs=tuple(job for job in jobs if job.key in keys))
    taken: list[Job] = []
    spent = 0.0
    for job in small:
        cost = plan.cost(job)
        if taken and spent + cost > budget:
            left_out.append((job, f"no time left in a budget of {budget:.0f} s"))
        else:
            taken.append(job)
            spent += cost
    return replace(plan, jobs=tuple(taken), left_out=tuple(left_out))


def _in_order_of_worth(entries: Iterable[CaseEntry], device: str) -> list[Job]:
    ranked: list[tuple[tuple[int, int], Job]] = []
    for number, entry in enumerate(entries):
        for place, workload in enumerate(entry.load().workloads_on(device)):
            for rank, dtype in enumerate(DTYPES[device]):
                ranked.append(((place + rank, place), Job(entry, workload, dtype)))
            late = COMPILED_RANK if number or place else 0
            ranked.append(((place + late, place), Job(entry, workload, "float32", compiled=True)))
    return [job for _, job in sorted(ranked, key=lambda one: one[0])]
