"""oneDNN's linear with post-operations, through torch's private ``mkldnn`` operators.

This is the one place that knows them, and ``traced`` beside it, which names them for a compiler. They are probed once, by
running them; where they are missing or behave otherwise, ``available`` is False and the public path is taken. They read the
layer's own weights, or weights that ``pack`` has laid out as oneDNN likes them best (see ``packed``), which spares a copy
inside every call.

Shapes: x (..., D), weight (N, D) with any strides or packed, bias (N,), residual (..., N).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..anatomy import ActivationKind
from . import traced
from .activations import KERNELS, QUICK_GELU_SLOPE
from .memory import alone
from .transforms import compiling, settled

DTYPES = (torch.float32, torch.bfloat16)
POST_OPERATIONS: dict[ActivationKind, tuple[str, str]] = {
    ActivationKind.GELU: ("gelu", "none"),
    ActivationKind.GELU_TANH: ("gelu", "tanh"),
    ActivationKind.GELU_TANH_SHORT: ("gelu", "tanh"),
    ActivationKind.SILU: ("swish", ""),
    ActivationKind.QUICK_GELU: ("swish", ""),
}
"""Activation kinds that the linear can apply itself: operator attribute and algorithm. The cut constant is the whole one to
every dtype that runs here. Not ReLU, which gives zero for NaN there."""


def available() -> bool:
    """True where the operators can be used at all."""
    return torch.float32 in dtypes()


@functools.cache
def dtypes() -> frozenset[torch.dtype]:
    """Those of ``DTYPES`` in which the operators exist and give what they should on a small example: for processors of AVX2
    alone, or where ``ONEDNN_MAX_CPU_ISA`` makes one of another, oneDNN has no bfloat16.

    The answer is kept, so it must not depend on who asks first: modes that change dtypes are off while it is found.
    """
    with torch._C.DisableTorchFunction(), torch.no_grad():
        x = torch.tensor([[1.0, 1.0, 1.0], [1.0, torch.nan, 1.0]], dtype=torch.float32)
        return frozenset(dtype for dtype in DTYPES if _works(x.to(dtype)))


@torch.compiler.assume_constant_result
def multiplies(dtype: torch.dtype) -> bool:
    """Whether calls of ``dtype`` can run here."""
    return dtype in dtypes()


def _works(x: Tensor) -> bool:
    weight, bias = torch.full((4, 3), 0.25, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
    expected = F.linear(x, weight, bias)
    try:
        plain, summed = linear(x, weight, bias), add(x, weight, bias, expected)
        active = [activate(x, weight, bias, kind) for kind in POST_OPERATIONS]
    except (AttributeError, RuntimeError):
        return False
    separate = [KERNELS[kind](expected) for kind in POST_OPERATIONS]
    pairs = zip([plain, summed, *active], [expected, 2 * expected, *separate], strict=True)
    tolerance = max(1e-5, 4 * torch.finfo(x.dtype).eps)
    return all(torch.allclose(mine, its, atol=tolerance, equal_nan=True) for mine, its in pairs)


@functools.cache
def packs() -> bool:
    """True where weights can be packed as well: the operators exist, take packed weights, and give them back bit for bit."""
    if not available():
        return False
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return _packs(torch.linspace(-3.0, 2.0, 35, dtype=torch.float32).view(5, 7))


def _packs(weight: Tensor) -> bool:
    x = torch.ones(2, 7, dtype=weight.dtype)
    holder = weight.clone()
    try:
        packed = pack(weight)
        same = torch.equal(unpack(packed), weight) and held_bytes(packed) >= weight.nbytes
        view = holder.detach()
        counted = not alone((holder,))
        del view
        counted = counted and alone((holder,))
        close = torch.allclose(linear(x, packed, None), F.linear(x, weight), atol=1e-5)
    except (AttributeError, RuntimeError):
        return False
    return same and close and counted


def suits(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether this call may run here: plain CPU tensors of one dtype, nobody differentiating or casting.

    ``others`` are the call's bias and residual."""
    return (
        multiplies(x.dtype)
        and weight.dtype is x.dtype
        and not x.is_cuda
        and x.device.type == "cpu"
        and weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, *others)))
        and not torch.is_autocast_enabled("cpu")
    )


def unfit(parameter: Tensor) -> Iterator[str]:
    """What keeps a layer with this parameter from ever running here, in a few words each."""
    if not multiplies(parameter.dtype):
        yield f"in {str(parameter.dtype).removeprefix('torch.')}"
    if parameter.device.type not in ("cpu", "meta"):
        yield f"on {parameter.device.type}"


def loses(x: Tensor, weight: Tensor, *, active: bool = False) -> bool:
    """Whether the BLAS behind ``F.linear`` is faster: by a weight with gaps in memory between its elements, on a processor of
    AVX2 alone or with AMX as ``_loses_narrow``, ``_loses_by_amx`` and ``_suits_amx`` say, and one row by a float32 weight
    whose storage is (D, N), on a processor for which that BLAS was made. ``active``: the linear would do an activation as well.

    Gaps (a weight that is some columns of a larger one): oneDNN goes to its reference kernel. Measured with two threads on an
    AMD server, 256 rows, 768 by 768, milliseconds of the BLAS and of oneDNN: 1.6 and 1520 in float32, 0.36 and 1610 in bfloat16.

    One row: measured with two threads on an Intel server with AVX-512, the BLAS' milliseconds and oneDNN's, D by N: 0.61 and
    1.07 at 768 by 3072, 0.85 and 1.04 at 3072 by 768, 1.36 and 2.52 at 1280 by 3840, 3.0 and 3.2 at 6400 by 1600, 4.2 and 6.2
    at 2048 by 8192; level at 768 by 768. From two rows on oneDNN is faster. On an AMD server with AVX-512 oneDNN is always:
    0.11 and 0.07 at 768 by 3072, 2.4 and 1.6 at 2048 by 8192."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        return True
    rows = settled(x.numel() // weight.shape[1], _USUAL)
    if _narrow() and _loses_narrow(rows, weight):
        return True
    if _suits_mkl(weight) and _loses_by_amx(rows, weight, active=active):
        return True
    if rows <= _MANY and _suits_amx(weight):
        return True
    return rows == 1 and weight.dtype is torch.float32 and weight.numel() >= _LARGE and weight.stride(1) != 1 and not _by_amd()


def _loses_narrow(rows: int, weight: Tensor) -> bool:
    """``loses`` on a processor of AVX2 alone, in float32: many rows by most weights, and one by a small one. Measured with two
    threads on an AMD server, milliseconds of the BLAS and of oneDNN, D by N: 1 row 0.08 and 0.11 at 768 by 768, 0.53 and 0.25
    at 768 by 3072; 8 rows 1.5 and 1.0, 1.3 and 0.8 at 3072 by 768; 128 rows 6.8 and 5.4, 4.8 and 5.3; 512 rows 20 and 18, 16
    and 20, 33 and 35 at 2048 by 2048; by a weight whose storage is (D, N) 8 rows 1.8 and 1.2 at 768 by 3072, 128 rows 6.4 and
    8.7."""
    outputs, inputs = weight.shape
    if rows > _MANY:
        return weight.stride(1) != 1 or rows > _MOST or outputs <= inputs
    return rows == 1 and weight.numel() < _LARGE


def _loses_by_amx(rows: int, weight: Tensor, *, active: bool) -> bool:
    """``loses`` where ``_suits_mkl``. Measured with two threads, the time of the BLAS over that of oneDNN, D by N, by itself,
    with GELU, with GELU by tanh, and with a sum: 1 row 0.48, 0.69, 0.63 and 0.55 at 768 by 768, 0.90, 0.92, 0.95 and 0.92 at
    2048 by 8192; 8 rows 0.47, 0.71, 1.08 and 0.55 at 768 by 768, 1.14, 1.21, 1.49 and 1.18 at 768 by 3072; 32 rows 0.93, 1.04,
    1.55 and 1.00 at 768 by 768, 1.08, 1.13, 1.72 and 1.08 at 1024 by 4096; 128 rows 0.94, 1.02, 1.97 and 0.98, 1.09, 1.09, 1.85
    and 1.08; 512 rows 0.96, 1.00, 2.14 and 0.99, 0.97, 1.02, 1.92 and 0.99. By a weight whose storage is (D, N) by itself 0.4
    to 0.97, but for small ones."""
    if rows <= _FEW or weight.stride(1) != 1:
        return True
    if weight.numel() < _MIDDLING:
        return rows < _MANY or not active
    return rows > _MOST and not active


def activates_slowly() -> bool:
    """Whether an activation is faster behind the linear than by it: on a processor of AVX2 alone. Measured with two threads on
    an AMD server, 256 rows, 768 by 3072, milliseconds behind it and by it: GELU 9.9 and 12.2, by tanh 10.5 and 14.2, SiLU 9.0
    and 12.1; level at 8 rows."""
    return _narrow()


def gates_slowly(weight: Tensor, kind: ActivationKind) -> bool:
    """Whether ``kind`` is faster behind the linear than by it: SiLU in float32 with AMX, and a weight of fewer than 4M elements.
    Measured with two threads on an Intel server, weights that no cache holds, the time behind it over that by it,
    for 32, 128 and 512 rows, D by N: 0.66, 0.74 and 0.83 at 640 by 1728, 0.86, 0.89 and 0.97 at 768 by 2048, 0.94, 0.95 and 1.01
    at 1024 by 2816, 1.14, 1.15 and 1.09 at 2048 by 8192."""
    return kind is ActivationKind.SILU and weight.numel() < _LARGEST and _suits_mkl(weight)


def sums_slowly(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a residual is better added behind the linear than by it: in bfloat16 to a large plain weight without a bias.
    Measured with two threads on an AMD server with AVX-512, 128 rows, milliseconds of the sum behind it and by it, D by N: 1.35
    and 1.36 at 2048 by 2048, 2.02 and 2.05 at 2048 by 3072, 5.67 and 5.82 at 2048 by 8192. With a bias, or at 768 by 3072, it
    is the other way round."""
    return bias is None and weight.dtype is torch.bfloat16 and weight.numel() >= _LARGEST


def wants_rows(weight: Tensor) -> bool:
    """Whether a weight stored as (D, N) is better stored as (N, D): in bfloat16, and in float32 a large one on a processor by
    AMD, or any by Intel with AMX. Measured with two threads on an AMD server with AVX-512, milliseconds as (D, N) and as (N, D),
    D by N, bfloat16: one row 0.28 and 0.23 at 768 by 3072, 0.30 and 0.23 at 3072 by 768, 2.4 and 1.6 at 2048 by 8192; 128 rows
    0.90 and 0.91, 0.87 and 0.81, 6.5 and 5.7. Float32: one row 0.33 and 0.31, 0.30 and 0.37, 2.8 and 1.5; 128 rows 1.7 and 1.7,
    1.7 and 1.5, 12.0 and 10.8. On an Intel server with AMX, float32, by oneDNN: 128 rows 3.9 and 2.2, 2.2 and 2.1, 16.1 and 14.6;
    one row by the BLAS 0.20 and 0.20, 0.19 and 0.20."""
    faster = weight.dtype is not torch.float32 or _suits_mkl(weight) or (weight.numel() >= _LARGEST and _by_amd())
    return faster and weight.device.type == "cpu"


@torch.compiler.assume_constant_result
def _by_amd() -> bool:
    return _maker_is_amd()


@functools.cache
def _maker_is_amd() -> bool:
    return str(capabilities().get("cpu_name", "")).startswith("AMD")


def capabilities() -> dict[str, Any]:
    """What torch knows of the processor; nothing in releases of torch that do not tell."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


def _suits_mkl(weight: Tensor) -> bool:
    """Whether the BLAS is Intel's, on one of its processors that have AMX, and does float32 as well as oneDNN. Of smaller weights
    than any published layer's nothing was measured."""
    return weight.dtype is torch.float32 and weight.numel() >= _SMALL and _by_amx()


def _suits_amx(weight: Tensor) -> bool:
    """Whether few rows are better left to ``F.linear``: in bfloat16 with AMX, where that is oneDNN's linear as well, and a
    post-operation saves less than choosing and calling it costs. Measured with two threads on an Intel server, the time of a
    layer by post-operations over that without, for 1, 8 and 32 rows: 1.09, 1.08 and 1.05 at 768 elements (Llama's), 1.03, 1.04
    and 1.03 at Llama-3.2-1B's sizes, 1.02, 1.00 and 1.00 at pythia-410m's, 1.04, 1.00 and 1.03 at GPT-2's; for 128 rows 1.04,
    0.99, 0.97 and 0.95."""
    return weight.dtype is torch.bfloat16 and weight.numel() >= _SMALL and _by_amx()


@torch.compiler.assume_constant_result
def _by_amx() -> bool:
    return _has_amx()


@functools.cache
def _has_amx() -> bool:
    return bool(capabilities().get("amx_bf16"))


@torch.compiler.assume_constant_result
def _narrow() -> bool:
    return _of_avx2_alone()


@functools.cache
def _of_avx2_alone() -> bool:
    able = capabilities()
    return bool(able.get("avx2")) and not able.get("avx512_f")


_USUAL = 128
"""Rows of a call whose number is not settled."""
_FEW = 2
_MANY = 32
_MOST = 256
_SMALL = 250_000
_LARGE = 1_000_000
_MIDDLING = 2_000_000
_LARGEST = 4_000_000


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _pointwise(x, weight, bias, "none", "")


def activate(x: Tensor, weight: Tensor, bias: Tensor | None, kind: ActivationKind) -> Tensor:
    """``kind`` (one of ``POST_OPERATIONS``) of the linear."""
    attribute, algorithm = POST_OPERATIONS[kind]
    if kind is ActivationKind.QUICK_GELU:
        # y * sigmoid(a * y) is silu(a * y) / a, and scaling x scales y.
        scaled = None if bias is None else bias * QUICK_GELU_SLOPE
        return _pointwise(x * QUICK_GELU_SLOPE, weight, scaled, attribute, algorithm).mul_(1 / QUICK_GELU_SLOPE)
    return _pointwise(x, weight, bias, attribute, algorithm)


def add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """The linear plus ``residual``, which is not changed."""
    if compiling():
        return traced.linear_add(x, weight, bias, residual)
    return _kernels()[1](x, residual, weight, bias, "add")


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: str, algorithm: str) -> Tensor:
    if compiling():
        return traced.linear(x, weight, bias, attribute, algorithm)
    return _kernels()[0](x, weight, bias, attribute, [], algorithm)


def pack(weight: Tensor) -> Tensor:
    """A copy of ``weight`` in oneDNN's own layout, an opaque tensor."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """The plain weight (N, D), bit for bit."""
    return packed.to_dense()


def held_bytes(packed: Tensor) -> int:
    """Bytes of memory of a packed weight, which is padded to whole blocks."""
    return int(torch.ops.mkldnn._nbytes(packed))


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """The linear with an activation and that with a sum. What Python puts around an operator is 1 % of a step of decoding, and
    left off."""
    operator = torch.ops.mkldnn._linear_pointwise
    return operator.default._op, operator.binary._op
