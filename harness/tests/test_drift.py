"""Drift: what changed upstream is named with the policies at risk, from source text alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from harness.drift import source
from harness.drift.compare import KEPT, LIBRARIES, DriftError, differences, read_kept, take
from harness.drift.fingerprint import Fingerprint, _hash, fingerprint

MODELING = '''
from .configuration_thing import ThingConfig

def rotate(x):
    return -x

class ThingNorm:
    def __init__(self):
        self.weight = Parameter(1)

class ThingLayer:
    """A docstring."""
    def __init__(self, config: ThingConfig):
        self.norm = ThingNorm()
        self.register_buffer("table", None)

    def forward(self, hidden_states, mask=None, **kwargs) -> Tensor:
        return rotate(self.norm(hidden_states))

class ThingModel:
    def forward(self, x):
        for layer in self.layers:
            x = layer(x, layer.kind)
'''
CONFIG = """
class ThingConfig:
    hidden_size: int = 8
"""
Release = Callable[[str, str], Fingerprint]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """Installs a release of a library of one layer, and takes its fingerprint."""
    package = tmp_path / "thinglibrary" / "thing"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "thinglibrary", raising=False)

    def make(modeling: str, config: str) -> Fingerprint:
        (package / "modeling_thing.py").write_text(modeling)
        (package / "configuration_thing.py").write_text(config)
        source.tree_of.cache_clear()
        return fingerprint("thinglibrary.thing.modeling_thing:ThingLayer")

    return make


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mask=None", "mask=None, cache=None", "argument new: cache"),
        ("mask=None", "mask=0", "argument mask was None, now 0"),
        ("return -x", "return x", "other code in rotate"),
        ("-> Tensor", "-> tuple", "returned (Tensor; "),
        ('"table"', '"cosines"', "part gone: ThingLayer.table"),
        ("layer.kind", "layer.sort", "attribute read by its parents gone: kind"),
        ("hidden_size: int = 8", "hidden_size: int = 9", "configuration field ThingConfig.hidden_size was 8, now 9"),
        ("class ThingLayer", "class ThingBlock", "is gone: "),
    ],
)
def test_each_kind_of_change_is_told_in_one_sentence(release: Release, old: str, new: str, words: str) -> None:
    """Signature, code, return type, parts, parents, configuration, and a class that is gone."""
    before = release(MODELING, CONFIG)
    after = release(MODELING.replace(old, new), CONFIG.replace(old, new))
    assert any(words in one for one in differences(before, after)), list(differences(before, after))


def test_comments_docstrings_and_layout_are_no_change(release: Release) -> None:
    """Only code counts."""
    before = release(MODELING, CONFIG)
    after = release(MODELING.replace('"""A docstring."""', '"""Another."""\n    # a remark\n'), CONFIG)
    assert list(differences(before, after)) == []


def test_a_field_of_a_syntax_tree_that_is_empty_is_no_change() -> None:
    """Python 3.12 gave functions type parameters, and has them empty where 3.11 has none."""
    before, after = (ast.parse("def turn(x):\n    return -x").body[0] for _ in range(2))
    after._fields = (*after._fields, "kinds")
    after.kinds = []
    assert _hash(before) == _hash(after)


def test_code_that_the_layer_does_not_use_is_no_change(release: Release) -> None:
    """A new class beside the layer puts nobody at risk."""
    before = release(MODELING, CONFIG)
    assert list(differences(before, release(MODELING + "\nclass Other:\n    pass\n", CONFIG))) == []


def test_every_layer_class_of_every_policy_has_a_fingerprint_in_the_tree() -> None:
    """The kept fingerprints name each class that a policy replaces, with its policies."""
    kept, now = read_kept(), take()
    assert now.layers.keys() <= kept.layers.keys()
    assert all(kept.policies[path] for path in now.layers)
    assert not [path for path, one in kept.layers.items() if one.missing]


def test_versions_are_of_the_libraries_that_layers_come_from() -> None:
    """All that are installed, as they are."""
    found = take().versions
    assert found.keys() <= set(LIBRARIES) and found["torch"] == version("torch")


def test_damaged_fingerprints_are_refused_with_one_line(tmp_path: Path) -> None:
    """The line says what to do."""
    path = tmp_path / KEPT.name
    path.write_text("{")
    with pytest.raises(DriftError, match="make them with harness drift --update"):
        read_kept(path)
