"""The fingerprint of where a run takes place. Versions are read without importing the libraries, but for torch."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from reports.record import Accelerator, Environment

PACKAGES = (
    "replace-policy-harness",
    "torch",
    "transformers",
    "diffusers",
    "megatron-core",
    "deepspeed",
    "numpy",
    "hypothesis",
    "pytest",
    "safetensors",
)


def fingerprint(*notes: str) -> Environment:
    """Describe this machine, and with how many threads this process computes, with ``notes`` of the caller's. Imports torch."""
    import torch

    cpu, cores, memory = cpu_name(), psutil.cpu_count() or 1, psutil.virtual_memory().total
    device = _accelerator()
    missing = () if device is not None else ("No accelerator: nothing was measured or checked on a GPU.",)
    identity = f"{cpu}|{cores}|{round(memory / 2**30)}|{device.name if device else ''}"
    return Environment(
        machine=hashlib.sha256(identity.encode()).hexdigest()[:12],
        cpu=cpu,
        cores=cores,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        accelerator=device,
        platform=platform.platform(),
        python=platform.python_version(),
        packages=installed(),
        git=_commit(),
        notes=(*missing, *notes),
    )


def installed(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of these packages, by default those that matter; absent ones are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's model name, or the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _accelerator() -> Accelerator | None:
    import torch

    if not torch.cuda.is_available():
        return None

    from .timing.nvml import open_nvml

    device = torch.cuda.get_device_properties(0)
    nvml = open_nvml(str(device.uuid))
    return Accelerator(
        name=device.name,
        memory_bytes=device.total_memory,
        driver=None if nvml is None else nvml.driver(),
        capability=f"{device.major}.{device.minor}",
    )


def _commit() -> str | None:
    """Commit of the harness's own checkout; None where it is installed without one."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")
