"""What a captured graph takes for granted of its modules: every change is noticed, and what the call itself set is taken back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policies.fused.attributes import AttributeWatch


class Doubled(nn.Linear):
    """As replacements and adapters change a layer in place."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def model() -> Any:
    """Two layers and, on the second, attributes of its own."""
    made: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    made[1].scale = 2.0
    made[1].table = torch.ones(3)
    made[1].config = SimpleNamespace(shift=1)
    return made


def rename(one: Any) -> None:
    one[1].gain = one[1].__dict__.pop("table")


def swap(one: Any) -> None:
    one[1].scale, one[1].table = one[1].table, one[1].scale


def exchange_hooks(one: Any) -> None:
    one[1]._forward_hooks = OrderedDict()


def transpose(one: Any) -> None:
    one[0].weight.data = one[0].weight.data.t()


CHANGES: dict[str, Callable[[Any], None]] = {
    "another value": lambda one: setattr(one[1], "scale", 3.0),
    "an attribute more": lambda one: setattr(one, "extra", 1),
    "an attribute less": lambda one: delattr(one[1], "table"),
    "another name": rename,
    "two exchanged": swap,
    "other hooks": exchange_hooks,
    "another mode": lambda one: one.eval(),
    "another parameter": lambda one: setattr(one[0], "bias", nn.Parameter(one[0].bias.detach().clone())),
    "no parameter": lambda one: setattr(one[0], "bias", None),
    "another class": lambda one: setattr(one[1], "__class__", Doubled),
    "another configuration": lambda one: setattr(one[1], "config", SimpleNamespace(shift=1)),
    "a field of the configuration": lambda one: setattr(one[1].config, "shift", 2),
    "another module": lambda one: one.__setitem__(1, nn.Linear(2, 2)),
    "values elsewhere": lambda one: setattr(one[1].weight, "data", one[1].weight.data.clone()),
    "other strides": transpose,
    "fewer rows": lambda one: setattr(one[0].weight, "data", one[0].weight.data[:1]),
    "a tensor elsewhere": lambda one: setattr(one[1].table, "data", torch.ones(3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_noticed(change: Callable[[Any], None]) -> None:
    one = model()
    watch = AttributeWatch((one,))
    assert not watch.moved() and not watch.changed()
    change(one)
    assert watch.moved() or watch.changed()


def test_new_values_in_the_same_memory_are_no_change() -> None:
    one = model()
    watch = AttributeWatch((one,))
    with torch.no_grad():
        one[0].weight.mul_(2)
    one[1].table.add_(1)
    assert not watch.moved() and not watch.changed()


def test_what_was_set_added_or_deleted_is_taken_back() -> None:
    one = model()
    before = {name: dict(module.__dict__) for name, module in one.named_modules()}
    watch = AttributeWatch((one,))
    one[1].scale = 5.0
    one[0].seen = []
    one[1].__class__ = Doubled
    del one[1].table
    watch.restore()
    assert type(one[1]) is nn.Linear
    assert {name: dict(module.__dict__) for name, module in one.named_modules()} == before


def test_hooks_inside_are_named_and_those_of_the_module_itself_are_not() -> None:
    one = model()
    watch = AttributeWatch((one,))
    outer = one.register_forward_hook(lambda *args: None)
    assert watch.hooked() is None
    inner = one[1].register_forward_pre_hook(lambda *args: None)
    assert watch.hooked() == "a hook on Linear"
    outer.remove()
    inner.remove()
    assert watch.hooked() is None
    own = one[0].forward
    one[0].forward = lambda x: own(x)
    assert AttributeWatch((one,)).hooked() == "a forward of its own on Linear"
