"""Which policies there are, by name and without importing any of them.

Explicit tuples: to add an architecture is to add a page and a line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import DSPolicy


@dataclass(frozen=True)
class Entry:
    """``name`` is the architecture's; ``policy`` is ``module:Class``; ``package`` and ``distribution`` are what it needs
    installed, as imported and as published."""

    name: str
    policy: str
    package: str
    distribution: str
    extra: str | None = None

    def load(self) -> type[DSPolicy]:
        policy: type[DSPolicy] = resolve_name(self.policy)
        return policy

    @property
    def unavailable(self) -> str | None:
        """Why this policy's library cannot be used here, or None."""
        if is_installed(self.package):
            return None
        extra = f": pip install 'replace-policy-harness[{self.extra}]'" if self.extra else ""
        return f"{self.distribution} is not installed{extra}"


def is_installed(package: str) -> bool:
    """Looking for a part of a package raises where the whole is missing; nothing is imported but the parents."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


TRANSFORMER_ENTRIES = (
    Entry("bert", "policies.bert:HFBertLayerPolicy", "transformers", "transformers"),
    Entry("gpt2", "policies.gpt2:HFGPT2LayerPolicy", "transformers", "transformers"),
    Entry("gptj", "policies.gptj:HFGPTJLayerPolicy", "transformers", "transformers"),
    Entry("gpt_neo", "policies.gpt_neo:HFGPTNEOLayerPolicy", "transformers", "transformers"),
    Entry("gpt_neox", "policies.gpt_neox:GPTNEOXLayerPolicy", "transformers", "transformers"),
    Entry("bloom", "policies.bloom:BLOOMLayerPolicy", "transformers", "transformers"),
    Entry("opt", "policies.opt:HFOPTLayerPolicy", "transformers", "transformers"),
    Entry("clip", "policies.clip:HFCLIPLayerPolicy", "transformers", "transformers"),
    Entry("llama", "policies.llama:LlamaLayerPolicy", "transformers", "transformers"),
    Entry("megatron", "policies.megatron:MegatronLayerPolicy", "megatron.core", "megatron-core", extra="megatron"),
)
GENERIC_ENTRIES: tuple[Entry, ...] = (
    Entry("unet", "policies.unet:UNetPolicy", "diffusers", "diffusers"),
    Entry("vae", "policies.vae:VAEPolicy", "diffusers", "diffusers"),
)
ENTRIES = TRANSFORMER_ENTRIES + GENERIC_ENTRIES


def policies() -> tuple[type[DSPolicy], ...]:
    """Every policy class. Pages import no library, so this works whatever is installed."""
    return tuple(entry.load() for entry in ENTRIES)
