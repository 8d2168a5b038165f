"""What replacing and loading hold in memory: nothing twice, and no more than a layer on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import policies
from harness.case import Case
from harness.properties.memory import bytes_held

from .saved import SAVED, llama, loaded, same, tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weight_is_held_twice(folder: Path, dtype: torch.dtype) -> None:
    original = loaded(llama(), folder, dtype)
    assert bytes_held(policies.load_replaced(llama(), folder, dtype=dtype).model) <= bytes_held(original)


def peak_growth(run: Any, mapped: int = 0) -> int:
    """Bytes of tensors by which ``run``, given a model that is made here, exceeds at its peak what was there before. A file
    of ``mapped`` bytes does not count: mapping it allocates nothing."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model = run.build()
        with record_function("from here"):
            pass
        run.work(model)
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda one: one.start_ns())
    held, before, most = 0, 0, None
    for event in events:
        if event.name() == "from here":
            before, most = held, held
        elif event.name() == "[memory]" and abs(event.nbytes()) != mapped:
            held += event.nbytes()
            most = None if most is None else max(most, held)
    assert most is not None
    return most - before


class Replacing:
    def __init__(self, case: Case) -> None:
        self.case = case

    def build(self) -> nn.Module:
        return self.case.build(self.case.simplest.with_value("layers", 6))

    def work(self, model: nn.Module) -> None:
        policies.replace_module(model)


class Loading:
    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype

    def build(self) -> nn.Module:
        return nn.Identity()

    def work(self, model: nn.Module) -> None:
        policies.load_replaced(llama(), self.folder, dtype=self.dtype)


@pytest.mark.parametrize("entry", [one for one in SAVED if one.load().layered], ids=lambda entry: entry.name)
def test_replacing_holds_no_more_than_one_layers_weights_twice(entry: Any) -> None:
    run = Replacing(entry.load())
    model = run.build()
    layer = model.get_submodule(policies.replace_module(model).replaced[0].path)  # its probes are over, too
    weights, masks = (sum(one.nbytes for one in found) for found in (layer.parameters(), layer.buffers()))
    assert peak_growth(run) <= weights + 8 * masks  # GPT-Neo's mask is compared with what it could be, in wider dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_allocates_no_more_than_the_weights_and_one_layer(tmp_path: Path, dtype: torch.dtype) -> None:
    from policies.fused import onednn

    onednn.available()
    model = tiny(num_hidden_layers=6, hidden_size=32)
    model.save_pretrained(tmp_path)
    model.to(dtype)
    weights, layer = (sum(p.nbytes for p in one.parameters()) for one in (model, model.model.layers[0]))
    mapped = (tmp_path / "model.safetensors").stat().st_size
    packed = 3 * 32 * 32 * dtype.itemsize * 6
    assert packed <= peak_growth(Loading(tmp_path, dtype), mapped) <= (packed if dtype is torch.float32 else weights) + layer


def test_packed_weights_leave_no_page_of_their_files_in_memory(tmp_path: Path) -> None:
    tiny(num_hidden_layers=4, hidden_size=256, intermediate_size=256).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    model = policies.load_replaced(llama(), tmp_path, plan="packed").model
    resident = sum(one.rss for one in psutil.Process().memory_maps() if one.path == str(file))
    assert resident < file.stat().st_size / 4
    same(model, policies.replace_module(loaded(llama(), tmp_path, torch.float32), plan="packed").model)


def test_the_memory_command_measures_every_way(tmp_path: Path) -> None:
    from cases import memory

    memory.save(tmp_path, 3e6, "float32")
    ways = {way: memory.measure(way, tmp_path, 3e6, "float32", "plain") for way in memory.WAYS}
    assert all(one["seconds"] > 0 and one["bytes"] == ways["replace"]["bytes"] > 1e6 for one in ways.values())
    ratios = {"checkpoint_to_load": [1.25], "checkpoint_to_load_with_call": [1.0]}
    lines = memory.table({"dtype": "float32", "plan": "plain", "ways": ways, **ratios}).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == list(memory.WAYS)
    assert lines[5] == "checkpoint to load, seconds: 1.25 (1.25)"


@pytest.mark.parametrize("parameters", [1e7, 1e8, 1.5e9, 7e9])
def test_the_memory_commands_model_has_the_size_asked_for(parameters: float) -> None:
    from cases import memory

    width, layers = (memory.shape(parameters)[name] for name in ("hidden_size", "num_hidden_layers"))
    inner = memory.shape(parameters)["intermediate_size"]
    size = 2 * memory.VOCABULARY * width + layers * (4 * width * width + 3 * width * inner)
    assert size == pytest.approx(parameters, rel=0.05)
