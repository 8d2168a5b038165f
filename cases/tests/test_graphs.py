"""The rules of graph capture, one by one. On a CPU the emulator stands in for CUDA graphs."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.process import SETTINGS
from policies.fused.capture import BY_DEVICE, EmulatorBackend, Recording
from policies.fused.graphs import Graphed

from .graph_calls import DEVICES, NEEDS_GPU, Model, same


@pytest.fixture(params=DEVICES, autouse=True)
def device(request: pytest.FixtureRequest) -> Any:
    """New tensors are there."""
    with torch.no_grad(), torch.device(request.param):
        yield request.param


def graphed(function: Any, **kwargs: Any) -> Graphed:
    return Graphed(function, backend=BY_DEVICE[torch.get_default_device().type](), **kwargs)


def _mutating(x: Tensor, parts: list[Tensor]) -> Tensor:
    return x + parts.pop(0)


EAGER = (
    ("random numbers", lambda x: x * torch.rand_like(x)),
    ("random numbers", lambda x: nn.functional.dropout(x, 0.5)),
    ("values decide", lambda x: x * x.sum().item()),
    ("values decide", lambda x: x if x.sum() > 0 else -x),
    ("values decide", lambda x: x[x > 0]),
    ("values decide", lambda x: x * sum(x.flatten().tolist())),
    ("values decide|a copy from cuda", lambda x: x * float(x.cpu().numpy().sum())),
    ("values decide", lambda x: torch.nonzero(x)),
    ("written to", lambda x: x.mul_(2)),
    ("are returned", lambda x: x),
    ("are returned", lambda x: (x + 1, x[:1])),
    ("class object", lambda x: (x + 1, object())),
)


@pytest.mark.parametrize(("reason", "function"), EAGER)
def test_what_a_graph_cannot_repeat_runs_eagerly_and_says_why(reason: str, function: Any) -> None:
    wrapped = graphed(function)
    for seed in (1, 2, 3):
        x = torch.randn(2, 3, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))
        theirs = x.clone()
        torch.manual_seed(seed)
        mine = wrapped(x)
        torch.manual_seed(seed)
        expected = function(theirs)
        if reason != "class object":
            assert same(mine, expected)
        assert torch.equal(x, theirs)
    assert wrapped.captures == 0
    (counted,) = wrapped.eager
    assert re.search(reason, counted)
    assert wrapped.eager[counted] == 3


def test_a_container_that_the_call_empties_is_emptied_for_the_caller() -> None:
    wrapped = graphed(_mutating)
    for _ in range(2):
        parts = [torch.ones(3), torch.zeros(3)]
        assert torch.equal(wrapped(torch.ones(3), parts), torch.full((3,), 2.0))
        assert len(parts) == 1
    assert list(wrapped.eager) == ["containers among its arguments are changed by the call"]


def test_a_generator_argument_runs_eagerly() -> None:
    wrapped = graphed(lambda x, generator: x + torch.rand(3, generator=generator))
    first, second = (wrapped(torch.zeros(3), torch.Generator(torch.get_default_device()).manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert list(wrapped.eager) == ["a value of class Generator"]


def test_calls_that_need_gradients_run_eagerly_and_have_them() -> None:
    wrapped = graphed(lambda x: x * 2)
    with torch.enable_grad():
        x = torch.ones(3, requires_grad=True)
        wrapped(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    assert list(wrapped.eager) == ["gradients are on"]


def test_autocast_hooks_and_forwards_put_on_an_instance_run_eagerly(device: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3)).requires_grad_(False)
    wrapped = graphed(model.forward, modules=(model,))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert wrapped(torch.ones(2, 3)).dtype is torch.bfloat16
    seen: list[Any] = []
    handle = model[0].register_forward_hook(lambda *args: seen.append(args))
    wrapped(torch.ones(2, 3))
    handle.remove()
    own = model[0].forward
    model[0].forward = lambda x: (seen.append(x), own(x))[1]
    wrapped(torch.ones(2, 3))
    del model[0].forward
    assert len(seen) == 2
    assert set(wrapped.eager) == {"autocast", "a hook on Linear", "a forward of its own on Linear"}


def test_a_call_of_itself_while_capturing_does_not_nest() -> None:
    def recursive(x: Tensor, depth: int) -> Tensor:
        return x if depth == 0 else wrapped(x * 2, depth - 1) + 1

    wrapped = graphed(recursive)
    assert torch.equal(wrapped(torch.ones(2), 2), recursive(torch.ones(2), 2))
    assert "a call while capturing" in wrapped.eager


def test_an_attribute_that_the_call_sets_is_set() -> None:
    model = Model()

    def counting(x: Tensor) -> Tensor:
        model.seen = getattr(model, "seen", 0) + 1
        return x * model.seen

    wrapped = graphed(counting, modules=(model,))
    for calls in (1, 2, 3):
        assert torch.equal(wrapped(torch.ones(2)), torch.full((2,), float(calls)))
        assert model.seen == calls


def test_what_the_call_adds_to_a_list_is_added_once_a_call() -> None:
    model = Model()

    def listing(x: Tensor) -> Tensor:
        model.adapters["merged"].append("a")
        return x * len(model.adapters["merged"])

    wrapped = graphed(listing, modules=(model,))
    for calls in (1, 2, 3):
        assert torch.equal(wrapped(torch.ones(2)), torch.full((2,), float(calls)))
        assert len(model.adapters["merged"]) == calls


def test_results_keep_views_of_each_other_and_never_of_the_graph() -> None:
    wrapped = graphed(lambda x: (both := x * 2, both[1:], both))
    first, part, again = wrapped(torch.ones(3))
    assert again is first
    first[1] = 7.0
    assert part[0] == 7.0
    assert torch.equal(wrapped(torch.ones(3))[0], torch.full((3,), 2.0))


def test_an_expanded_input_keeps_its_strides() -> None:
    wrapped = graphed(lambda x: x + torch.as_strided(x, x.shape, x.stride()))
    for value in (1.0, 2.0):
        x = torch.full((1, 3), value).expand(4, 3)
        assert torch.equal(wrapped(x), x * 2)
    assert wrapped.captures == 1


def test_an_input_whose_rows_are_woven_into_each_other_is_captured() -> None:
    wrapped = graphed(lambda x: x * 2)
    for start in (0.0, 40.0):
        x = torch.arange(start, start + 40).as_strided((2, 3), (5, 8))
        assert torch.equal(wrapped(x), x * 2)
    assert wrapped.captures == 1


def test_constants_made_of_numbers_are_fresh_in_every_replay() -> None:
    wrapped = graphed(lambda x: torch.tensor([1.0, 2.0, 3.0]).add_(x))
    for _ in range(3):
        assert torch.equal(wrapped(torch.ones(3)), torch.tensor([2.0, 3.0, 4.0]))


def test_what_cannot_be_captured_after_all_is_made_eagerly_and_said_and_others_go_on() -> None:
    """What a trial run cannot see: a library that waits for the device."""
    calls = []

    def refused(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == 3:  # after the trial run and the warm-up
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return x * 2

    wrapped = graphed(refused)
    for _ in range(3):
        assert torch.equal(wrapped(torch.ones(3)), torch.full((3,), 2.0))
    assert dict(wrapped.eager) == {"cannot be captured: operation not permitted when stream is capturing": 3}
    other = graphed(lambda x: x * 3)
    assert torch.equal(other(torch.ones(3)), torch.full((3,), 3.0))
    assert (other.captures, dict(other.eager)) == (1, {})
    torch.randn(3)


@NEEDS_GPU
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_waiting_for_the_device_while_capturing_leaves_it_as_it_was(device: str) -> None:
    """torch's random generator and the graphs' memory too."""

    def waits(x: Tensor) -> Tensor:
        torch.cuda.synchronize()
        return x * 2

    wrapped = graphed(waits)
    for _ in range(2):
        assert torch.equal(wrapped(torch.ones(3)), torch.full((3,), 2.0))
        assert torch.randn(3).isfinite().all()
    ((reason, times),) = wrapped.eager.items()
    assert (reason.partition(":")[0], times) == ("cannot be captured", 2)
    other = Graphed(lambda x: x * 3, backend=wrapped.backend)
    assert torch.equal(other(torch.ones(4)), torch.full((4,), 3.0))
    assert other.captures == 1


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_while_one_thread_captures_the_calls_of_others_run_eagerly(device: str) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(x: Tensor) -> Tensor:
        inside.set()
        assert go_on.wait(60)
        return x * 2

    first, second = graphed(slow), graphed(lambda x: x * 3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first, torch.ones(3))
        assert inside.wait(60)
        meanwhile = second(torch.ones(3))
        go_on.set()
        assert torch.equal(waiting.result(), torch.full((3,), 2.0))
    assert torch.equal(meanwhile, torch.full((3,), 3.0))
    assert (second.captures, dict(second.eager)) == (0, {"another call is being captured": 1})
    second(torch.ones(3))
    assert (first.captures, second.captures) == (1, 1)


def test_weights_on_another_device_keep_a_call_from_being_captured() -> None:
    """What is computed there nobody would record."""
    wrapped = graphed(lambda x: x * 2, modules=(nn.Linear(3, 3, device="meta").requires_grad_(False),))
    assert torch.equal(wrapped(torch.ones(3)), torch.full((3,), 2.0))
    assert (wrapped.captures, dict(wrapped.eager)) == (0, {"a tensor on meta": 1})


class _Counting(EmulatorBackend):
    """Says what the model's scale was at each replay; a graph's first is compared with the call."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.scales: list[float] = []

    def capture(self, run: Any) -> Recording:
        recording = super().capture(run)

        def replay() -> None:
            self.scales.append(self.model.scale)
            recording.replay()

        return Recording(recording.output, replay)


def _called_once(**kwargs: Any) -> tuple[Model, _Counting, Graphed]:
    """A model, what counts its replays, and its calls by graphs."""
    model = Model()
    backend = _Counting(model)
    wrapped = Graphed(model.forward, backend=backend, modules=(model,), **kwargs)
    wrapped(torch.ones(1, 3))
    return model, backend, wrapped


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_replay_is_launched_before_attributes_are_looked_at_and_not_believed_where_one_is_another(device: str) -> None:
    """The device works meanwhile. What it worked out is thrown away, and the second replay is that of another capture."""
    model, backend, wrapped = _called_once()
    model.scale = 2.0
    assert same(wrapped(torch.ones(1, 3)), model(torch.ones(1, 3)))
    assert (backend.scales, wrapped.captures, wrapped.replays) == ([1.0, 1.0, 2.0, 2.0, 2.0], 2, 2)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_model_is_made_ready_while_the_device_works_and_before_anything_else_runs(device: str) -> None:
    """Where that changed something, even in place and unseen by a watch, what the device worked out is thrown away."""
    biases: list[float] = []

    def prepare() -> bool:
        asked_for = bool(biases)
        while biases:
            model.linear.bias.fill_(biases.pop())
        return asked_for

    model, backend, wrapped = _called_once(prepare=prepare)
    biases.append(3.0)
    assert same(wrapped(torch.ones(1, 3)), model(torch.ones(1, 3)))
    assert (float(model.linear.bias[0]), backend.scales, wrapped.captures) == (3.0, [1.0] * 5, 2)
    biases.append(5.0)
    with torch.autocast("cpu"):
        wrapped(torch.ones(1, 3))
    assert (float(model.linear.bias[0]), wrapped.captures, dict(wrapped.eager)) == (5.0, 2, {"autocast": 1})


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_nothing_is_launched_that_would_read_memory_that_is_gone(device: str) -> None:
    model, backend, wrapped = _called_once()
    model.linear.weight.data = model.linear.weight.data * 2
    model.scale = 2.0
    assert same(wrapped(torch.ones(1, 3)), model(torch.ones(1, 3)))
    assert backend.scales == [1.0, 1.0, 2.0, 2.0]


def test_inference_mode_and_plain_calls_share_no_trouble() -> None:
    wrapped = graphed(lambda x: x * 2)
    with torch.inference_mode():
        assert wrapped(torch.ones(3)).is_inference()
    assert not wrapped(torch.ones(3)).is_inference()
    assert wrapped.captures == 1


OTHERWISE = {
    "the default dtype": torch.float64,
    "the precision of products": "medium",
    "deterministic algorithms": 1,
    "cuDNN: enabled": False,
    "cuDNN: benchmark": True,
    "flash attention": False,
    "efficient attention": False,
    "cuDNN's attention": False,
    "plain attention": False,
    "sums in fp16": False,
    "sums in bf16": False,
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_torch_goes_by_is_part_of_a_signature(name: str) -> None:
    (setting,) = (one for one in SETTINGS if one.name == name)
    wrapped, x, before = graphed(lambda x: x * 2), torch.ones(3, dtype=torch.float32), setting.get()
    wrapped(x)
    setting.put(OTHERWISE[name])
    try:
        wrapped(x)
    finally:
        setting.put(before)
    wrapped(x)
    assert (wrapped.captures, wrapped.replays) == (2, 3)


def test_the_least_recently_used_capture_goes_first() -> None:
    wrapped = graphed(lambda x: x * 2, limit=2)
    for rows in (1, 2, 1, 3, 1):
        wrapped(torch.ones(rows))
    assert wrapped.captures == 3
    wrapped(torch.ones(2))
    assert wrapped.captures == 4


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        graphed(lambda x: x, limit=0)
