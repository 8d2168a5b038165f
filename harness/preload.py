"""What every process that checks needs; the clean process that they are forked from imports it once."""

from importlib import import_module
from threading import RLock

from tqdm import tqdm

from harness.search import quiet

NEEDED = (
    "transformers.modeling_utils",
    "harness.check",
    "harness.hf.rotary",
    "harness.validation.derive",
    "harness.validation.work",
    "policies.fused.layer",
)

with quiet():  # libraries tell whoever imports them what they miss
    for name in NEEDED:
        import_module(name)

# By itself the first bar takes a semaphore of the system, shown or not (torch.fx has one), which a process that is stopped
# leaves behind.
tqdm.set_lock(RLock())
