"""Comparing fingerprints that are kept in the tree with what is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from policies.catalogue import ENTRIES, Entry

from ..environment import installed
from .fingerprint import Fingerprint, fingerprint

KEPT = Path(__file__).with_name("fingerprints.json")
LIBRARIES = ("transformers", "diffusers", "megatron-core", "torch")


class DriftError(ValueError):
    """The fingerprints in the tree cannot be used; one line."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Fingerprints of one set of releases. ``policies`` maps a layer class to the policies that replace it."""

    made_by: str = "harness drift --update"
    python: str
    versions: dict[str, str]
    layers: dict[str, Fingerprint]
    policies: dict[str, tuple[str, ...]]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it was. ``risk`` names the policies that replace the layer."""

    layer: str
    what: str
    risk: tuple[str, ...]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What ``harness drift`` found."""

    kept: dict[str, str]
    installed: dict[str, str]
    changes: tuple[Change, ...]
    unavailable: tuple[str, ...] = ()


def take() -> Kept:
    """Fingerprints of every layer class of every policy whose library is installed."""
    layers: dict[str, Fingerprint] = {}
    policies: dict[str, tuple[str, ...]] = {}
    for entry in _available():
        policy = entry.load()
        for path in policy.layer_classes:
            if path.startswith("*:"):
                continue  # code that is copied from project to project has no release
            layers[path] = fingerprint(path)
            policies[path] = (*policies.get(path, ()), policy.__name__)
    return Kept(python=sys.version.split()[0], versions=installed(LIBRARIES), layers=layers, policies=policies)


def _available() -> Iterator[Entry]:
    return (entry for entry in ENTRIES if entry.unavailable is None)


def read_kept(path: Path = KEPT) -> Kept:
    """The fingerprints in the tree. Raises ``DriftError``."""
    remedy = "make them with harness drift --update"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except OSError as problem:
        raise DriftError(f"{path}: no fingerprints ({problem.strerror}); {remedy}") from None
    except msgspec.MsgspecError as problem:
        raise DriftError(f"{path}: damaged fingerprints ({problem}); {remedy}") from None


def write_kept(kept: Kept) -> None:
    """Keep ``kept`` in the tree, readable in a diff."""
    KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


def compare(kept: Kept, now: Kept) -> Drift:
    """What differs, layer by layer."""
    changes = []
    missing = sorted(kept.layers.keys() - now.layers.keys())
    for path, before in sorted(kept.layers.items()):
        after = now.layers.get(path)
        if after is not None:
            risk = kept.policies.get(path, ())
            changes += [Change(layer=path, what=what, risk=risk) for what in differences(before, after)]
    added = sorted(now.layers.keys() - kept.layers.keys())
    changes += [Change(layer=path, what="has no fingerprint in the tree", risk=now.policies[path]) for path in added]
    return Drift(kept=kept.versions, installed=now.versions, changes=tuple(changes), unavailable=tuple(missing))


def differences(before: Fingerprint, after: Fingerprint) -> Iterator[str]:
    """One sentence for each thing that changed."""
    if after.missing and not before.missing:
        yield f"is gone: {after.missing}"
        return
    yield from _in_mapping("argument", before.signature, after.signature)
    if list(before.signature) != list(after.signature) and before.signature.keys() == after.signature.keys():
        yield "takes its arguments in another order"
    if before.returns != after.returns:
        yield f"returned ({before.returns}), now ({after.returns})"
    yield from _in_set("part", before.parts, after.parts)
    yield from _in_mapping("configuration field", before.config, after.config)
    yield from _in_set("attribute read by its parents", before.read_by_parents, after.read_by_parents)
    changed = [name for name, source in before.sources.items() if after.sources.get(name, source) != source]
    if changed:
        yield f"other code in {', '.join(changed)}"
    yield from _in_set("code used", tuple(before.sources), tuple(after.sources))


def _in_mapping(what: str, before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    yield from _in_set(what, tuple(before), tuple(after))
    for name in before:
        if name in after and before[name] != after[name]:
            yield f"{what} {name} was {before[name]}, now {after[name]}"


def _in_set(what: str, before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    gone = [one for one in before if one not in set(after)]
    new = [one for one in after if one not in set(before)]
    if gone:
        yield f"{what} gone: {', '.join(gone)}"
    if new:
        yield f"{what} new: {', '.join(new)}"
