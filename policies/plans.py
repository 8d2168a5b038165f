"""How a replacement runs. Decided when it is made, said in its ``repr`` and in the report.

plain   public torch operators only: any device, any dtype, differentiable
onednn  on a CPU, outside autograd, in float32 and bfloat16: oneDNN's linear with the activation or the residual sum as a
        post-operation, on the layer's own weights, which lie by rows in memory where that is faster (see
        ``fused.onednn.wants_rows``); on a processor that multiplies no half precision, in float32 (see ``fused.widened``);
        every other call runs plain
packed  as onednn, with Transformer layers' weights held in oneDNN's own layout and nowhere else. Fastest, for inference
        only: anything but such a call first gives the layer its plain weights
        back, which takes a copy; training raises. On Intel's processors one token at a time in float32 reads a plain weight
        faster than a packed one (by a quarter to a half), so that onednn is the better plan for a process that only
        decodes so; on AMD's the packed one is faster there too
graphed on CUDA: as plain, with each call of a Transformer layer that brings no cache, or transformers' static one, and is not
        differentiated captured as a graph and replayed (see ``fused.graphs``); every other call runs plain. A layer of a few
        kernels takes a tenth of the time it takes to launch them one by one. Inputs are copied into the graph and outputs out of
        it, and for each form of call (shapes, dtypes, the static cache; the last eight) both are kept. A layer whose calls are
        seldom of one form twice soon runs plain. Diffusion models are captured as a whole, by every plan
compiled as graphed, and what is captured are kernels that ``torch.compile`` made of the fused layer for this form of call, which
        takes seconds at the first one; layers that are alike share them (see ``fused.compiled``)
auto    onednn where this torch has it, else plain
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class PlanUnavailable(ValueError):
    """A plan was asked for that cannot run here; one line that says why."""


class Plan(Enum):
    AUTO = "auto"
    PLAIN = "plain"
    ONEDNN = "onednn"
    PACKED = "packed"
    GRAPHED = "graphed"
    COMPILED = "compiled"


CAPTURED = (Plan.GRAPHED, Plan.COMPILED)
"""Plans by which calls of Transformer layers are captured and replayed."""


def settle(plan: Plan | str, parameters: Iterable[Tensor] = ()) -> Plan:
    """The plan that ``plan`` comes to here, for a model of these parameters. Raises ``PlanUnavailable`` for one that is
    unknown, or that no call could run."""
    from .fused import emulated, onednn
    from .fused.capture import backend

    try:
        wanted = Plan(plan)
    except ValueError:
        known = " ".join(one.value for one in Plan)
        raise PlanUnavailable(f"no execution plan is called {plan!r}; there are: {known}") from None
    if wanted is Plan.ONEDNN and not onednn.available():
        raise PlanUnavailable("plan onednn: this build of torch has no oneDNN linear; use plain or auto")
    if wanted is Plan.PACKED and not onednn.packs():
        raise PlanUnavailable("plan packed: this build of torch has no packed oneDNN linear; use plain or auto")
    if wanted in (Plan.ONEDNN, Plan.PACKED) and not emulated.active():
        unfit = ", ".join(sorted(_unfit(wanted, parameters)))
        if unfit:
            dtypes = " and ".join(sorted(str(one).removeprefix("torch.") for one in onednn.dtypes()))
            raise PlanUnavailable(f"plan {wanted.value} runs on this CPU in {dtypes}, not {unfit}; use plain or auto")
    if wanted in CAPTURED:
        fit = (backend().device_type, "meta")
        unfit = ", ".join(sorted({one.device.type for one in parameters} - set(fit)))
        if unfit:
            elsewhere = "move the model there first, or use plain or auto"
            raise PlanUnavailable(f"plan {wanted.value} runs on CUDA, not on {unfit}; {elsewhere}")
    if wanted is Plan.AUTO:
        return Plan.ONEDNN if onednn.available() else Plan.PLAIN
    return wanted


def in_words(plan: Plan, parameters: Iterable[Tensor]) -> str:
    """What ``plan`` comes to in calls of these parameters' dtype on their device."""
    from .fused import widened

    if plan is not Plan.ONEDNN:
        return plan.value
    parameters = tuple(parameters)
    unfit = _unfit(plan, parameters)
    if unfit:
        return f"{Plan.PLAIN.value} (no oneDNN {', '.join(sorted(unfit))})"
    wide = {str(one.dtype).removeprefix("torch.") for one in parameters if widened.widens(one)}
    return f"{plan.value} ({' and '.join(sorted(wide))} in float32)" if wide else plan.value


def _unfit(plan: Plan, parameters: Iterable[Tensor]) -> set[str]:
    """What keeps layers of these parameters from ever running by ``plan``, in a few words each. Plain weights may be widened."""
    from .fused import onednn, widened

    plain = plan is Plan.ONEDNN
    return {why for one in parameters if not (plain and widened.widens(one)) for why in onednn.unfit(one)}
