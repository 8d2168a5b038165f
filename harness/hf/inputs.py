"""Inputs of transformers' models: padding, masks, encoder states, and the axes that nearly every case draws.

Shapes: B batch, T tokens, S source tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from ..case import Axis, Example
from .unusual import NORM_EPS, WEIGHTS


def in_installed(*names: str) -> tuple[str, ...]:
    """Those of ``names`` that the installed transformers knows as activations."""
    return tuple(name for name in names if name in ACT2FN)


VOCABULARY = 37
POSITIONS = 160
"""Of a model that is given no more tokens than ``TOKENS``. Scaled rotary kinds begin to scale behind half of them."""

LARGE_HEADS = (64, 32, 40, 48, 72, 80, 96, 112, 128, 136, 160, 192, 256)
LARGE_INNER = (256, 500, 513, 1025)
"""Whole blocks of every usual size, and blocks with a tail."""
LARGEST_HEADS = (520, 576)
LARGEST_INNER = (8200, 11008)
"""Beyond a block of 8,192 elements, as kernels of norms and activations have them."""
HEADS = Axis("heads", (2, 1, 3, 4, 5, 6, 8, 12), large=(1, 2, 3), largest=(71, 128))
HEAD_SIZES = Axis("head_size", (4, 2, 6, 8, 10), claimed=False, large=LARGE_HEADS, largest=LARGEST_HEADS)
"""Even, because rotary positions pair elements."""
ODD_HEAD_SIZES = Axis("head_size", (4, 3, 5, 7, 8), claimed=False, large=LARGE_HEADS, largest=LARGEST_HEADS)
KV_HEADS = Axis("kv_heads", (1, 2, 3, 4), large=(1, 2), largest=(40, 71))
GROUP = Axis("group", (1, 2, 3, 5), large=(1, 2, 3, 4, 8), largest=(16, 71))
"""Queries to a key/value head."""
LAYERS = Axis("layers", (1, 2, 3))
PREFIX = 2
BATCH = Axis("batch", (1, 2, 3, 4), large=(1, 9, 16, 33), largest=(130, 257))
TOKENS = Axis("tokens", (3, 1, 2, 4, 5, 7, 11, 136))
"""The last is more than kernels have in a block: what weights, hooks, masks and caches do to a call is asked of kernels that work
by blocks too."""
INNER = Axis("inner", (8, 5, 16, 31, 48), claimed=False, large=LARGE_INNER, largest=LARGEST_INNER)
INNER_OR_FOURFOLD = Axis("inner", (None, 5, 16, 31, 48), large=(None, *LARGE_INNER), largest=LARGEST_INNER)
"""Of configurations in which None stands for four times the hidden size."""
EPS = Axis("eps", (1e-5, 1e-12, 1e-6, 1e-3, 1e-1))
IMPLEMENTATION = Axis("attention", ("sdpa", "eager"))
COUNTED = "counted"
MOST_SKIPPED = 3
"""Positions that a row leaves out at most."""
ROW_POSITIONS = Axis("positions", (COUNTED, "of each row"))
"""Where each row's tokens stand: counted by the model, or told, as for a batch that is padded."""
SOURCE_TOKENS = Axis("source_tokens", (2, 1, 5), claimed=False, large=(9, 65), largest=(1500,))
"""Of encoder states, for cross-attention."""
PADDING = Axis("padding", ("none", "right", "left", "interior"))
MASK = Axis("mask", ("none", "2d", "4d float", "4d bool", "4d prefix"))
MASK_2D = Axis("mask", ("none", "2d"))
ACTIVATIONS = Axis(
    "activation",
    in_installed(
        "gelu",
        "relu",
        "gelu_new",
        "quick_gelu",
        "silu",
        "gelu_pytorch_tanh",
        "gelu_fast",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_accurate",
        "gelu_10",
        "swish",
        "mish",
        "tanh",
        "sigmoid",
        "relu2",
        "relu6",
        "leaky_relu",
        "linear",
        "laplace",
        "hardswish",
        "sqrtsoftplus",
        "prelu",
    ),
)
"""Every activation in the table of the installed transformers, but for ``xielu``, whose constants are rounded to
bfloat16."""

SIZES = (LAYERS, BATCH, TOKENS, PADDING, WEIGHTS, NORM_EPS)
COMMON = (*SIZES, MASK)
EAGER_ONLY = Axis("attention", ("eager",))


def positions(example: Example) -> int:
    """Positions that the model of ``example`` learns or tabulates: all that its tokens need, and a few to decode."""
    return max(POSITIONS, int(example["tokens"]) + 4)


def row_positions(example: Example) -> dict[str, Tensor]:
    """``position_ids`` (B, T) where the example's ``positions`` are told: each row leaves out some at a place of
    its own. By how much a row begins later nothing would show: rotary positions tell how far tokens are from each other."""
    if example.values.get("positions", COUNTED) == COUNTED:
        return {}
    counted, row = torch.arange(example["tokens"]), torch.arange(example["batch"])[:, None] + example.seed
    return {"position_ids": counted + (counted > row % counted.numel()) * (row % (MOST_SKIPPED + 1))}


def padding_mask(example: Example) -> Tensor:
    """(B, T) int64, 1 where a token is real. Each row keeps at least one token; rows differ where they can."""
    batch, tokens = example["batch"], example["tokens"]
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    generator = torch.Generator().manual_seed(example.seed + 1)
    for row in range(batch):
        pads = int(torch.randint(0, tokens, (), generator=generator))
        if example["padding"] == "right":
            mask[row, tokens - pads :] = 0
        elif example["padding"] == "left":
            mask[row, :pads] = 0
        elif example["padding"] == "interior" and tokens > 2:
            hidden = 1 + torch.randperm(tokens - 2, generator=generator)[: max(pads - 1, 0)]
            mask[row, hidden] = 0
    return mask


def attention_mask(example: Example, *, causal: bool) -> Tensor | None:
    """The mask in the form that the example's ``mask`` axis asks for: None, (B, T) int64, or (B, 1, T, T).

    A bool mask is given to sdpa only; eager attention adds what it is given, so it gets the floats. In a causal model the
    first tokens of a prefix see each other whatever their order, as a prompt's do that is read as a whole.
    """
    form = example["mask"]
    if form == "none":
        return None
    keep = padding_mask(example)
    if form == "2d":
        return keep
    allowed = keep.bool()[:, None, None, :].expand(-1, 1, keep.shape[1], -1)
    if causal:
        earlier = torch.ones(keep.shape[1], keep.shape[1], dtype=torch.bool).tril()
        if form == "4d prefix":
            earlier[:, :PREFIX] = True
        allowed = allowed & earlier
    if form == "4d bool" and example["attention"] == "sdpa":
        return allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def valid_positions(example: Example, *, causal: bool) -> Tensor | None:
    """(B, T) bool: positions whose output is defined, or None where all are. A padded position has none, and neither
    has a real one that may attend to nothing."""
    if example["mask"] == "none" or example["padding"] == "none":
        return None
    keep = padding_mask(example).bool()
    return keep & (keep.cumsum(1) > 0) if causal else keep


def encoder_states(example: Example, width: int) -> dict[str, Tensor]:
    """States (B, S, ``width``) and padding mask (B, S) for cross-attention; every source keeps its first token."""
    batch, source = example["batch"], example["source_tokens"]
    generator = torch.Generator().manual_seed(example.seed + 3)
    mask = torch.rand(batch, source, generator=generator) < 0.7
    mask[:, 0] = True
    states = torch.randn(batch, source, width, generator=generator)
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask.long()}
