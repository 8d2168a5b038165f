"""What two runs were made with, and how that differs, in sentences: machines, threads, packages, profiles, seeds, tolerances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports import wording
from reports.record import begun

if TYPE_CHECKING:
    from reports.record import Environment, Run, Verdict


def differences(base: Run, head: Run, judged: list[tuple[Verdict, Verdict]]) -> tuple[str, ...]:
    """One sentence for each way in which two runs were made differently; ``judged`` are verdicts of both that are compared."""
    sentences = ["The base run is the later of the two: the changes are told backwards."] if _later(base, head) else []
    sentences += environment_differences(base.environment, head.environment)
    for what, old, new in (("profile", base.profile, head.profile), ("seed", base.seed, head.seed)):
        if old != new:
            sentences.append(f"The {what} differs: {old}, then {new}.")
    for name, run in (("base", base), ("head", head)):
        if not run.complete:
            sentences.append(f"The {name} run was cut short: what it lacks may only not have been reached.")
    for old_verdict, new_verdict in judged:
        if None not in (old_verdict.tolerance, new_verdict.tolerance) and old_verdict.tolerance != new_verdict.tolerance:
            sentences.append(
                f"The tolerance of {new_verdict.property} on {new_verdict.case} differs: "
                f"{wording.error(old_verdict.tolerance)}, then {wording.error(new_verdict.tolerance)}."
            )
    return tuple(sentences)


def environment_differences(base: Environment, head: Environment) -> tuple[str, ...]:
    """One sentence for each part of the two environments that differs, the machine and its threads apart."""
    pairs = (
        ("Python", base.python, head.python),
        ("platform", base.platform, head.platform),
        ("harness commit", base.git or "unknown", head.git or "unknown"),
        ("accelerator driver", _driver(base), _driver(head)),
    )
    named = [f"The {what} differs: {old}, then {new}." for what, old, new in pairs if old != new]
    names = sorted(base.packages.keys() | head.packages.keys())
    packages = [
        f"{name} {base.packages.get(name, 'absent')}, then {head.packages.get(name, 'absent')}"
        for name in names
        if base.packages.get(name) != head.packages.get(name)
    ]
    return (*named, *([f"Packages differ: {'; '.join(packages)}."] if packages else []))


def timings_apart(base: Environment, head: Environment) -> tuple[str, ...]:
    """Why no timing of two runs is compared, in a sentence; nothing where they can be."""
    if base.machine != head.machine:
        return (f"The machines differ, so no timing is compared: {_machine(base)}, then {_machine(head)}.",)
    if base.threads != head.threads:
        return (f"The thread counts differ, so no timing is compared: {base.threads}, then {head.threads}.",)
    return ()


def _driver(environment: Environment) -> str:
    return environment.accelerator.driver or "unknown" if environment.accelerator else "none"


def _machine(environment: Environment) -> str:
    accelerator = f" with {environment.accelerator.name}" if environment.accelerator else ""
    return f"{environment.machine} ({environment.cpu}, {wording.count(environment.cores, 'core')}{accelerator})"


def _later(run: Run, other: Run) -> bool:
    """Whether ``run`` was begun after ``other``, as far as their times can be read."""
    own, since = begun(run.created), begun(other.created)
    return own is not None and since is not None and own > since
