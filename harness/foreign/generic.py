"""DeepSpeed's two policies for diffusion models, judged: they put a module in place of the whole model."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from policies.foreign.changed import Changed, as_a_whole

from ..case import Axis, Case, Inputs
from ..exact import exact_mode
from ..nested import own_lists
from ..numerics import EXACT_TOLERANCE, gap
from ..properties.equality import MODEL_EQUALITY
from ..search import quiet
from . import generic_scripts, scripts
from .domain import Limit, explore
from .report import Defect, Judged
from .words import example_words, some

COSTS = 3
"""An example of a diffusion model costs so much more than a layer's that so many times fewer are run."""


@dataclass(frozen=True, kw_only=True)
class GenericRow:
    policy: str
    case: str
    live: str
    expected: str
    """What the module that it puts in place has to be called with where it differs from the original; a word on it."""


GENERIC_ROWS = (
    GenericRow(policy="UNetPolicy", case="unet", live="diffusers:UNet2DConditionModel", expected="the way pipelines call it"),
    GenericRow(policy="VAEPolicy", case="vae", live="diffusers:AutoencoderKL", expected="the original's own calls"),
)


def judge_generic(row: GenericRow, case: Case, *, examples: int, seed: int) -> tuple[Judged, dict[str, str]]:
    """The verdict on one policy, and its scripts by file name."""
    started = time.perf_counter()
    with quiet():
        judging = _Judging(row, case)
        found = judging.all(max(examples // COSTS, 5), seed, started)
    return found, judging.scripts


class _Judging:
    def __init__(self, row: GenericRow, case: Case) -> None:
        self.row, self.case = row, called_as_pipelines_do(case) if row.case == "unet" else case
        self.defects: list[Defect] = []
        self.scripts: dict[str, str] = {}

    def all(self, examples: int, seed: int, started: float) -> Judged:
        constructs = self._constructs()
        live: Any = resolve_name(self.row.live)
        policy = self._policy()
        matches = "yes" if policy.match(self.case.build(self.case.simplest)) and policy._orig_layer_class is live else "no"
        for key in generic_scripts.ALWAYS[self.row.policy]:
            self._add(key, generic_scripts.SAYS[key], silent=key == "return_dict")
        attention = self._attention(policy)
        domain = explore(MODEL_EQUALITY, self.case, self._replace, examples=examples, seed=seed)
        for limit in domain.limits:
            self._limit(limit)
        limits = ", ".join(limit.axis for limit in domain.limits)
        verdict = domain.problem or (f"right but for {limits}" if limits else "right where it can be made")
        return Judged(
            policy=self.row.policy,
            layer=self.row.live.partition(":")[2],
            cells={
                "matches": matches,
                "constructs": constructs,
                "extracts": attention,
                "checkpoint names": "has none",
                "flags": "takes none",
            },
            verdict=f"cannot be made at first; {verdict}" if constructs != "yes" else verdict,
            proven=domain.examples,
            from_us=f"without CUDA graphs (enable_cuda_graph=False); {self.row.expected}",
            defects=tuple(self.defects),
            seconds=round(time.perf_counter() - started, 1),
        )

    def _policy(self) -> Any:
        from deepspeed.module_inject import replace_policy

        resolve_name(self.row.live)
        return getattr(replace_policy, self.row.policy)()

    def _replace(self, model: nn.Module) -> Changed:
        return as_a_whole(self._policy().apply(model, enable_cuda_graph=False), self.row.policy, was=model)

    def _constructs(self) -> str:
        """Made in a process of its own, where nothing of diffusers has been imported yet."""
        text = generic_scripts.script(self.row.policy, "construction")
        assert text is not None
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            return "yes"
        line = (done.stdout.strip().splitlines() or ["it raises"])[-1]
        self._keep("construction", text, line, silent=False, shown=done.returncode == scripts.SHOWS)
        return "only after its model was imported"

    def _attention(self, policy: Any) -> str:
        """What the policy reads from each attention of the simplest model, computed from that alone."""
        if self.row.policy == "VAEPolicy":
            return "attention() gives None"
        wrong: dict[str, tuple[str, float | None]] = {}
        for blocks in ("C", "CD", "AD"):
            example = self.case.simplest.with_value("blocks", blocks)
            with exact_mode():
                model = self.case.build(example).double()
                for name, one in model.named_modules():
                    if type(one).__name__ == "Attention" and (problem := misread(policy, one)):
                        wrong.setdefault(problem[0], (f"{name} (blocks={blocks})", problem[1]))
        for what, (where, error) in wrong.items():
            self._add("attention", f"attention() {what}: {where}", silent=True, error=error)
        return "wrong for some" if wrong else "yes"

    def _limit(self, limit: Limit) -> None:
        values = f"{limit.axis} = {some(str(one) for one in limit.failing)}"
        what = f"{limit.message} (at {values})"
        self._add(
            limit.axis, what, silent=not limit.raised, example=example_words(limit.example, self.case.axes), error=limit.error
        )

    def _add(self, key: str, what: str, *, silent: bool, example: str = "", error: float | None = None) -> None:
        text = generic_scripts.script(self.row.policy, key)
        self._keep(key, text, what, silent=silent, shown=scripts.shows(text), example=example, error=error)

    def _keep(
        self, key: str, text: str | None, what: str, *, silent: bool, shown: bool, example: str = "", error: float | None = None
    ) -> None:
        name = f"{self.row.policy}-{key.replace('_', '-')}"
        if text is not None:
            self.scripts[f"{name}.py"] = text
        script = f"{name}.py" if text is not None else None
        self.defects.append(Defect(id=name, what=what, silent=silent, example=example, error=error, script=script, shown=shown))


def called_as_pipelines_do(case: Case) -> Case:
    """``case`` with sample and timestep given by position, and nothing given that is None."""
    axes = tuple(Axis(axis.name, (False,)) if axis.name == "positional" else axis for axis in case.axes)

    def call(self: Case, model: nn.Module, inputs: Inputs) -> Any:
        kwargs = {name: value for name, value in inputs.kwargs.items() if value is not None and name != "positional"}
        if kwargs["return_dict"]:
            del kwargs["return_dict"]
        kwargs |= own_lists(kwargs)
        return model(kwargs.pop("sample"), kwargs.pop("timestep"), **kwargs)

    return case.changed(axes=axes, call=call)


def misread(policy: Any, attention: Any) -> tuple[str, float | None] | None:
    """What is wrong with what ``policy`` reads from a diffusers ``Attention``, and the relative error; None where its
    tensors give the module's own output."""
    states = attention.cross_attention_dim if attention.is_cross_attention else attention.query_dim
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, attention.query_dim, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 3, states, generator=generator, dtype=torch.float64) if attention.is_cross_attention else None
    expected = attention(x, encoder_hidden_states=context)
    try:
        *inputs, out, bias, _, heads = policy.attention(attention)
    except Exception as problem:
        return f"raises {type(problem).__name__}: {problem}", None
    query, key, value = inputs if len(inputs) == 3 else inputs[0].chunk(3)
    source = x if context is None else context

    def split(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        split(F.linear(x, query)), split(F.linear(source, key)), split(F.linear(source, value))
    )
    difference = gap(expected, F.linear(mixed.transpose(1, 2).flatten(2), out, bias))
    if difference.within(EXACT_TOLERANCE):
        return None
    left = [name for name in ("group_norm", "norm_q", "to_add_out", "add_k_proj") if getattr(attention, name, None) is not None]
    left += ["the biases of query, key and value"] if attention.to_q.bias is not None else []
    left += ["the residual"] if attention.residual_connection else []
    return f"leaves out {', '.join(left) or 'something'}", difference.error
