"""Runs that look like real ones, made from a seed: the material of the reports' tests.

A full run holds every case with every property, three columns over three workloads a case and raw samples, which
is what the figures for size and time are measured on.
"""

from __future__ import annotations

import datetime
import math
import random

from reports import record

CASES = {
    "bert": "HFBertLayerPolicy",
    "roberta": "HFBertLayerPolicy",
    "gpt2": "HFGPT2LayerPolicy",
    "gptj": "HFGPTJLayerPolicy",
    "gpt_neo": "HFGPTNEOLayerPolicy",
    "gpt_neox": "GPTNEOXLayerPolicy",
    "bloom": "BLOOMLayerPolicy",
    "opt": "HFOPTLayerPolicy",
    "clip": "HFCLIPLayerPolicy",
    "llama": "LlamaLayerPolicy",
    "megatron": "MegatronLayerPolicy",
    "unet": "UNetPolicy",
    "vae": "VAEPolicy",
}
STATEMENTS = {
    "contract": "The five methods answer with the layer's own parameters, names and flags.",
    "layer equality": "The replacement computes the layer's function on every valid position.",
    "model equality": "The model with replaced layers computes the original model's outputs.",
    "cache": "One shot, prefill with steps, and chunks give the same outputs and the same cache.",
    "metamorphic": "Batch order, padding and later tokens change nothing that they should not.",
    "accounting": "Every source parameter moves original and replacement alike.",
    "lifecycle": "Revert, deepcopy, moves and state_dict work as on the original.",
    "graph": "Replaying a captured graph equals calling the module.",
    "refusal": "What the replacement cannot express is refused by name before anything is changed.",
}
WORKLOADS = (
    ("small", "prefill", "batch 1, 128 tokens"),
    ("base", "decode", "batch 4, 1 token after 512"),
    ("base", "prefill", "batch 1, 512 tokens"),
)
PAIRS = (
    ("original sdpa", "replaced", 1.4),
    ("original compiled", "replaced + compile", 1.12),
    ("original eager", "original sdpa", 1.05),
)


UNTIMED = {"ratio": None, "baseline_seconds": (), "subject_seconds": (), "flops_fraction": None, "bytes_fraction": None}


def environment(machine: str = "5f2c9a", **changes) -> record.Environment:
    fields = {
        "machine": machine,
        "cpu": "Example 9000, 2.4 GHz",
        "cores": 8,
        "threads": 2,
        "memory_bytes": 24 * 2**30,
        "accelerator": None,
        "platform": "Linux x86_64",
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "diffusers": "0.42.1"},
        "git": "9e3b1c7",
        "notes": ("No accelerator here: device time was not measured.",),
    }
    return record.Environment(**{**fields, **changes})


def verdict(case: str = "bert", name: str = "layer equality", **changes) -> record.Verdict:
    fields = {
        "case": case,
        "policy": CASES.get(case, "OtherPolicy"),
        "property": name,
        "statement": STATEMENTS.get(name, "Something holds."),
        "outcome": "held",
        "examples": 240,
        "layers_replaced": 431,
        "layers_expected": 431,
        "worst_error": 3.1e-14,
        "tolerance": 1e-10,
        "seconds": 3.4,
        "seed": 20260,
    }
    return record.Verdict(**{**fields, **changes})


def failure(case: str = "bloom", name: str = "layer equality") -> record.Failure:
    return record.Failure(
        id=f"{case}/{name}/1",
        message="The replaced layer's output departs from the original's by 3.2e-02 of its scale at position 3.",
        example={"heads": "6", "layers": "1", "batch": "1", "padding": "left", "mask": "bool"},
        off_simplest=("heads", "padding"),
        nearest_passing={"heads": "4", "layers": "1", "batch": "1", "padding": "left", "mask": "bool"},
        error=3.2e-2,
        stages=(
            record.Stage(name="input norm", own_error=0.0, inherited_error=0.0),
            record.Stage(name="query, key, value", own_error=2.0e-16, inherited_error=0.0),
            record.Stage(name="ALiBi", own_error=6.1e-2, inherited_error=2.0e-16),
            record.Stage(name="attention", own_error=4.0e-16, inherited_error=3.5e-2),
        ),
        script="import torch\nfrom policies import replace_module\n\ntorch.manual_seed(7)\nprint('heads', 6)\n",
        traceback=None,
    )


def timing(
    case: str = "bert",
    *,
    at: float = 1.4,
    width: float = 0.02,
    seconds: float = 1.4e-3,
    samples: int = 50,
    source: random.Random | None = None,
    **changes,
) -> record.Timing:
    source = source or random.Random(0)
    low, high = at * (1 - width / 2), at * (1 + width / 2)
    fields = {
        "case": case,
        "workload": f"{case}-base",
        "phase": "prefill",
        "shape": "batch 1, 128 tokens",
        "dtype": "float32",
        "device": "cpu",
        "baseline": "original sdpa",
        "subject": "replaced",
        "verdict": "FASTER" if low > 1 else "SLOWER" if high < 1 else "AMBIGUOUS",
        "reason": "the whole interval is on one side of 1" if low > 1 or high < 1 else "the interval holds 1",
        "ratio": record.Interval(estimate=at, low=low, high=high),
        "baseline_seconds": tuple(seconds * math.exp(source.gauss(0, 0.03)) for _ in range(samples)),
        "subject_seconds": tuple(seconds / at * math.exp(source.gauss(0, 0.03)) for _ in range(samples)),
        "error": 4.0e-7,
        "layers_replaced": 1,
        "flops": 1.8e9,
        "bytes": 2.9e7,
        "flops_fraction": source.uniform(0.35, 0.9),
        "bytes_fraction": source.uniform(0.05, 0.6),
        "products_fraction": source.uniform(0.6, 0.95),
        "peak_bytes": 61 * 2**20,
        "rest_bytes": 29 * 2**20,
        "prepare_seconds": 0.21,
    }
    return record.Timing(**{**fields, **changes})


def run(id: str = "run-a", **changes) -> record.Run:
    """The smallest run that has a little of everything."""
    fields = {
        "id": id,
        "created": "2026-03-14T04:10:00Z",
        "command": "harness run",
        "profile": "nightly",
        "seed": 20260,
        "complete": True,
        "seconds": 1311.0,
        "environment": environment(),
        "verdicts": (verdict(),),
        "timings": (timing(),),
    }
    return record.Run(**{**fields, **changes})


def full_run(
    id: str = "run-a",
    *,
    seed: int = 1,
    faulty: bool = False,
    day: int = 0,
    factors: dict[str, float] | None = None,
    machine: str = "5f2c9a",
) -> record.Run:
    """A run over all cases; ``faulty`` adds one of each outcome, ``factors`` scale the ratios of a case."""
    source = random.Random(seed)
    created = datetime.datetime(2026, 1, 1, 3, 30, tzinfo=datetime.UTC) + datetime.timedelta(days=day)
    return run(
        id,
        created=created.isoformat(),
        seed=seed,
        environment=environment(machine),
        verdicts=tuple(_verdicts(source, faulty)),
        coverage=tuple(_coverage(case, source) for case in CASES),
        timings=tuple(_timings(source, faulty, factors or {})),
        budgets=tuple(_budget(case, dtype, source) for case in CASES for dtype in ("float32", "bfloat16", "float16")),
        ceilings=(record.Ceilings(device="cpu", gemm_flops={"float32": 1.9e11, "bfloat16": 6.0e11}, copy_bytes=2.1e10),),
        null_lane=record.NullLane(comparisons=24, alarms=0, smallest_effect=0.017),
    )


def _budget(case: str, dtype: str, source: random.Random) -> record.ErrorBudget:
    used = source.uniform(0.05, 0.3)
    return record.ErrorBudget(
        case=case,
        policy=CASES[case],
        dtype=dtype,
        examples=240,
        used_median=used,
        used_worst=2.5 * used,
        multiple=8.0,
        floor=4.0,
    )


def _verdicts(source: random.Random, faulty: bool):
    for case in CASES:
        for name in STATEMENTS:
            if name == "graph" and case not in ("unet", "vae", "clip"):
                continue
            if case == "megatron" and faulty:
                yield verdict(
                    case,
                    name,
                    outcome="unavailable",
                    reason="megatron-core is not installed; pip install replace-policy-harness[megatron]",
                    examples=0,
                    layers_replaced=0,
                    layers_expected=0,
                    worst_error=None,
                )
            elif (case, name) == ("bloom", "layer equality") and faulty:
                yield verdict(case, name, outcome="failed", reason="An example disagreed.", worst_error=3.2e-2, failure=failure())
            elif (case, name) == ("gptj", "cache") and faulty:
                yield verdict(
                    case,
                    name,
                    outcome="vacuous",
                    reason="No layer was replaced in 40 examples.",
                    examples=40,
                    layers_replaced=0,
                    layers_expected=80,
                    worst_error=None,
                )
            elif (case, name) == ("vae", "graph") and faulty:
                yield verdict(
                    case,
                    name,
                    outcome="error",
                    reason="The original raised ValueError on every example.",
                    examples=0,
                    worst_error=None,
                )
            else:
                layers = source.randrange(200, 700)
                yield verdict(
                    case,
                    name,
                    examples=source.randrange(200, 400),
                    layers_replaced=layers,
                    layers_expected=layers,
                    worst_error=10 ** source.uniform(-15.6, -12.5),
                    refused=3 if name == "refusal" else 0,
                    refusals={"learned positions": 3} if name == "refusal" else {},
                )


def _timings(source: random.Random, faulty: bool, factors: dict[str, float]):
    for case in CASES:
        for size, phase, shape in WORKLOADS:
            for dtype in ("float32", "bfloat16"):
                for baseline, subject, typical in PAIRS:
                    ratio = typical * math.exp(source.gauss(0, 0.12)) * factors.get(case, 1.0)
                    row = {
                        "workload": f"{case}-{size}",
                        "phase": phase,
                        "shape": shape,
                        "dtype": dtype,
                        "baseline": baseline,
                        "subject": subject,
                    }
                    if faulty and case == "bloom":
                        yield timing(
                            case,
                            source=source,
                            **row,
                            verdict="FAILED",
                            reason="equality did not hold",
                            **UNTIMED,
                            error=3e-2,
                        )
                    else:
                        yield timing(case, at=ratio, seconds=10 ** source.uniform(-3.3, -1.5), source=source, **row)


def _coverage(case: str, source: random.Random) -> record.Coverage:
    def draw(*values: str) -> dict[str, int]:
        return {value: source.randrange(12, 160) for value in values}

    axes = {
        "heads": draw("1", "3", "4", "5", "6", "12"),
        "batch": draw("1", "2", "3", "4"),
        "padding": draw("none", "left", "right", "interior"),
        "mask": draw("none", "bool", "additive"),
        "activation": draw("gelu", "relu", "silu", "quick_gelu"),
        "attention": draw("eager", "sdpa"),
        "layers": draw("1", "2", "3"),
    }
    missed = ("padding=interior",) if case == "opt" else ()
    return record.Coverage(case=case, axes=axes, pairs_seen=231, pairs_claimed=240, missed=missed)
