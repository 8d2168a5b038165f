"""``python -m cases.memory``: what replacing costs in memory and time, on a Llama-shaped model of a size of your choice.

Every figure comes from a fresh process. ``replace`` replaces a model that lies in memory. ``load`` (transformers'
``from_pretrained``, then ``replace_module``) and ``checkpoint`` (``load_replaced``) start from the same files of a
gigabyte each, in the page cache, and take turns. Memory is given relative to the model's weights, above what the process
held before: resident (pages of mapped files included) and, behind the stroke, anonymous.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from policies.plans import Plan, PlanUnavailable, settle

WAYS = ("replace", "load", "checkpoint")
DTYPES = {"float32": 4, "bfloat16": 2}
VOCABULARY = 32_000
LAYERS = range(16, 40)
"""Layers that a model of its width usually has."""


def shape(parameters: float) -> dict[str, Any]:
    """A configuration of about so many parameters, with heads that are not grouped: a quarter of a layer is QKV."""
    width = 64
    while _layers(parameters, width) not in LAYERS and _layers(parameters, width) > LAYERS.start:
        width *= 2
    return {
        "hidden_size": width,
        "intermediate_size": int(width * 2.6875),
        "num_attention_heads": max(1, width // 64),
        "num_key_value_heads": max(1, width // 64),
        "num_hidden_layers": max(1, _layers(parameters, width)),
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }


def _layers(parameters: float, width: int) -> int:
    return round((parameters - 2 * VOCABULARY * width) / (12.0625 * width * width))


def measure(way: str, folder: Path, parameters: float, dtype: str, plan: str) -> dict[str, float]:
    """One way, in this process."""
    import torch

    from harness.timing.memory import MemoryWatch, held

    with tempfile.TemporaryDirectory() as small:  # once at a small size, so that nothing is imported on the clock
        save(Path(small), 1e6, dtype)
        _prepared(way, Path(small), 1e6, dtype, plan)()
    gc.collect()
    before = held()
    run = _prepared(way, folder, parameters, dtype, plan)
    with MemoryWatch() as loading:
        model = run()
    gc.collect()
    rest = held()
    with MemoryWatch() as calling, torch.no_grad():
        model(torch.arange(8)[None])
    after = held()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    found = {"parameters": weights / DTYPES[dtype], "bytes": weights, "seconds": loading.seconds, "call_seconds": calling.seconds}
    for name, then in (("peak", loading.peak), ("rest", rest), ("called", after)):
        found[f"{name}_resident"] = (then.resident - before.resident) / weights
        found[f"{name}_anonymous"] = (then.anonymous - before.anonymous) / weights
    return found


def _prepared(way: str, folder: Path, parameters: float, dtype: str, plan: str) -> Callable[[], Any]:
    """What is timed, with everything before it done."""
    from transformers import LlamaForCausalLM, logging

    import policies

    logging.disable_progress_bar()
    if way == "checkpoint":
        return lambda: policies.load_replaced(LlamaForCausalLM, folder, plan=plan).model
    if way == "load":
        return lambda: policies.replace_module(LlamaForCausalLM.from_pretrained(folder), plan=plan).model
    model = _model(parameters, dtype)
    return lambda: policies.replace_module(model, plan=plan).model


def _model(parameters: float, dtype: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with no_init_weights():
            model = LlamaForCausalLM(LlamaConfig(**shape(parameters), dtype=dtype)).eval()
    finally:
        torch.set_default_dtype(before)
    some = torch.empty(1 << 20).uniform_(-0.02, 0.02)
    with torch.no_grad():
        for parameter in model.parameters():
            for part in parameter.view(-1).split(some.numel()):
                part.copy_(some[: part.numel()])
    return model


def save(folder: Path, parameters: float, dtype: str) -> None:
    """A checkpoint of such a model, in files of a gigabyte at most."""
    from transformers import logging

    logging.disable_progress_bar()
    _model(parameters, dtype).save_pretrained(folder, max_shard_size="1GB")


def compare(parameters: float, dtype: str, plan: str, pairs: int) -> dict[str, Any]:
    """Medians by way, and the ratios of ``pairs`` pairs of processes that load."""
    with tempfile.TemporaryDirectory() as name:
        child("save", name, parameters, dtype, plan)
        for way in ("load", "checkpoint"):  # both files and code are in the page cache from here on
            child(way, name, parameters, dtype, plan)
        runs: dict[str, list[dict[str, float]]] = {"replace": [], "load": [], "checkpoint": []}
        runs["replace"].append(child("replace", name, parameters, dtype, plan))
        for turn in range(pairs):
            for way in ("load", "checkpoint") if turn % 2 else ("checkpoint", "load"):
                runs[way].append(child(way, name, parameters, dtype, plan))
    medians = {way: {key: statistics.median(one[key] for one in found) for key in found[0]} for way, found in runs.items()}
    both = list(zip(runs["checkpoint"], runs["load"], strict=True))
    return {
        "dtype": dtype,
        "plan": plan,
        "ways": medians,
        "checkpoint_to_load": [mine["seconds"] / its["seconds"] for mine, its in both],
        "checkpoint_to_load_with_call": [
            (mine["seconds"] + mine["call_seconds"]) / (its["seconds"] + its["call_seconds"]) for mine, its in both
        ],
    }


def child(way: str, folder: str, parameters: float, dtype: str, plan: str) -> dict[str, float]:
    """One way, in a process of its own."""
    command = [sys.executable, "-m", "cases.memory", "--only", way, "--folder", folder]
    command += ["--parameters", str(parameters), "--dtype", dtype, "--plan", plan]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout or "{}")
    return found


def table(found: dict[str, Any]) -> str:
    first = found["ways"]["replace"]
    lines = [
        f"{first['parameters'] / 1e9:.2f} billion parameters in {found['dtype']}, {first['bytes'] / 1e9:.2f} GB, "
        f"plan {found['plan']}",
        f"{'':12}{'seconds':>9}{'first call':>12}{'peak':>16}{'at rest':>16}{'after a call':>16}",
    ]
    for way, one in found["ways"].items():
        parts = [f"{one[f'{when}_resident']:.3f} / {one[f'{when}_anonymous']:.3f}" for when in ("peak", "rest", "called")]
        lines.append(f"{way:12}{one['seconds']:>9.2f}{one['call_seconds']:>12.2f}" + "".join(f"{part:>16}" for part in parts))
    for key, what in (("checkpoint_to_load", "seconds"), ("checkpoint_to_load_with_call", "seconds with the first call")):
        ratios = found[key]
        lines.append(f"checkpoint to load, {what}: {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
    return "\n".join(lines)


def _see_that_it_runs(plan: str, dtype: str) -> None:
    import torch

    settle(plan, [torch.empty(0, dtype=getattr(torch, dtype))])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cases.memory", description=str(__doc__).split("\n")[0])
    parser.add_argument("--parameters", type=float, default=1.5e9)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--plan", choices=[one.value for one in Plan], default="auto")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes that load, either way")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=(*WAYS, "save"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    needed = options.parameters * DTYPES[options.dtype]
    if options.only == "save":
        save(options.folder, options.parameters, options.dtype)
    elif options.only:
        print(json.dumps(measure(options.only, options.folder, options.parameters, options.dtype, options.plan)))
    elif psutil.virtual_memory().available < 2.5 * needed:
        parser.error(f"a model of {needed / 1e9:.1f} GB needs {2.5 * needed / 1e9:.1f} GB of free memory, itself and its files")
    else:
        try:
            _see_that_it_runs(options.plan, options.dtype)
        except PlanUnavailable as problem:
            parser.error(str(problem))
        found = compare(options.parameters, options.dtype, options.plan, options.pairs)
        print(json.dumps(found) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
