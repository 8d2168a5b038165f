"""Faults that only layers of real sizes have: kernels made for one width of a head, one length of a row, one block of a batch.

Shapes: B batch, H heads, S keys, E head size, D hidden size, F inner size of the MLP.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from policies.anatomy import Norm
from policies.fused import transformer as fused_transformer
from policies.fused.mlp import FusedMLP

from .cache import caches
from .fault import miscomputing
from .layout import grouped
from .workspace import finishing, without_from

HEAD = 64
"""Elements of a head that the faulty attention kernel is written for."""
LANES = 32
"""Elements of a head that a warp takes at a time."""
THREADS = 256
"""Elements of a row that the faulty norm kernel has threads for."""
ONE_BLOCK = 1024
"""Elements of a row that the faulty norm kernel has a block for."""
HEADS = 32
"""Heads that the faulty attention kernel has room for."""
BLOCKS = 65_535
"""Blocks of the faulty attention kernel's grid, one for each head of a row."""
KEYS = 4096
"""Keys that the faulty attention kernel has room for the scores of."""
TILE = 128
"""Columns of the MLP that the faulty kernel writes at a time."""
STAGES = 136
"""Keys that the faulty kernel of wide heads has stages for."""
SPLIT = 512
"""Keys of a split of the faulty step of decoding."""
GROUPS = (4, 8)
"""Queries to a key/value head that the faulty kernel packs."""
CHUNK = 140
"""Tokens of a chunk from which on the faulty kernel is taken."""
ROWS = 8
"""Rows of a batch that the faulty kernel takes at a time."""


def _first_elements(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if query.shape[-1] <= HEAD:
        return query, key, value
    return without_from(query, -1, HEAD), key, without_from(value, -1, HEAD)


def whole_lanes(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of a head (E) behind its last whole block of lanes, where there is one, counts for nothing."""
    if query.shape[-1] <= LANES:
        return query, key, value
    return without_from(query, -1, query.shape[-1] // LANES * LANES), key, value


def _whole_rows(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if len(value) <= ROWS:
        return query, key, value
    return query, key, without_from(value, 0, len(value) // ROWS * ROWS)


def _first_threads(honest: Any) -> Any:
    def wrong(norm: Norm, x: Tensor) -> Tensor:
        out: Tensor = honest(norm, x)
        if x.shape[-1] > THREADS:
            out = out.clone()
            out[..., THREADS:] = x[..., THREADS:]
        return out

    return wrong


def _whole_tiles(honest: Any) -> Any:
    def wrong(self: FusedMLP, *args: Any) -> Tensor:
        inner: Tensor = honest(self, *args)
        return inner if inner.shape[-1] <= TILE else without_from(inner, -1, inner.shape[-1] // TILE * TILE)

    return wrong


def _one_block(honest: Any) -> Any:
    def wrong(norm: Norm, x: Tensor) -> Tensor:
        out: Tensor = honest(norm, x)
        return out if x.shape[-1] <= ONE_BLOCK else without_from(out, -1, ONE_BLOCK)

    return wrong


def _first_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query if query.shape[1] <= HEADS else without_from(query, 1, HEADS), key, value


def _first_keys(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query, key, value if value.shape[2] <= KEYS else without_from(value, 2, KEYS)


def _one_grid(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = BLOCKS // query.shape[1]
    return query, key, value if len(value) <= rows else without_from(value, 0, rows)


def _late_keys_of_wide_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads as published layers have them meet keys as published contexts have them."""
    if query.shape[-1] < HEAD or value.shape[2] <= STAGES:
        return query, key, value
    return query, key, without_from(value, 2, STAGES)


def _whole_blocks_of_keys(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys = value.shape[2]
    if query.shape[2] > 1 or keys % SPLIT:
        return query, key, value
    return query, key, without_from(value, 2, keys - SPLIT)


def _heads_next_door(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if query.shape[1] // key.shape[1] not in GROUPS:
        return query, key, value
    return query, key.roll(1, 1), value


def _chunks_from_the_front(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk behind a long past, values as they stand a place further on."""
    tokens, keys = query.shape[2], value.shape[2]
    if tokens <= CHUNK or keys - tokens <= 2 * CHUNK:
        return query, key, value
    return query, key, value.roll(1, 2)


PUBLISHED_SIZES = (
    miscomputing(
        "F65 wide and long",
        "F65",
        "vllm PR #44692, flash-attention #778",
        "The attention kernel of wide heads loses the keys that are behind what its stages hold.",
        finishing(_late_keys_of_wide_heads),
        expects=("published layers",),
    ),
    miscomputing(
        "F65 full splits",
        "F65",
        "pegainfer PR #350, flash-attention PR #1455",
        "A step of decoding leaves out the last split of keys where it is full.",
        finishing(_whole_blocks_of_keys),
        applies=caches,
        expects=("published layers",),
    ),
    miscomputing(
        "F65 packed groups",
        "F65",
        "vllm PR #40792",
        "The kernel that takes a group's four or eight queries at once takes the next group's keys.",
        finishing(_heads_next_door),
        applies=grouped,
        expects=("published layers", "large layers"),
    ),
    miscomputing(
        "F65 late chunk",
        "F65",
        "onnxruntime PR #28958",
        "A long chunk behind a longer past is aligned with the cache's wrong end.",
        finishing(_chunks_from_the_front),
        applies=caches,
        expects=("far past",),
    ),
)
"""Wrong where a layer is as wide as published ones and its context is as long as theirs."""

LARGEST_SIZES = (
    miscomputing(
        "F65 keys",
        "F65",
        "vllm #1370, flash-attention #772",
        "The attention kernel has room for the scores of so many keys, and those behind them count for nothing.",
        finishing(_first_keys),
        applies=caches,
        expects=("far past",),
    ),
    miscomputing(
        "F65 grid",
        "F65",
        "flashinfer #3125, MagiAttention PR #40, pytorch #142228",
        "The attention kernel has a block for each head of each row, and rows behind the grid's end are not computed.",
        finishing(_one_grid),
        expects=("many rows",),
    ),
    miscomputing(
        "F65 one block",
        "F65",
        "onnxruntime PR #7002, LeetCUDA #390",
        "The norm kernel takes a row in one block, and what is behind the block's end stays zero.",
        (fused_transformer, "normalise", _one_block),
        expects=("largest sizes",),
    ),
    miscomputing(
        "F65 many heads",
        "F65",
        "DeepSpeed #2062",
        "The attention kernel has room for the queries of so many heads, and those behind them are lost.",
        finishing(_first_heads),
        expects=("largest sizes",),
    ),
)
"""Wrong at sizes that only the largest models have."""

SIZES = (
    miscomputing(
        "F65 wide heads",
        "F65",
        "triton #621",
        "The attention kernel is written for heads of 64 elements and leaves out what a wider head has more.",
        finishing(_first_elements),
        expects=("large layers",),
    ),
    miscomputing(
        "F65 lanes",
        "F65",
        "FasterTransformer #89, flashinfer #4299, mlc-llm PR #1889",
        "The attention kernel takes 32 elements of a head at a time, and what is left behind the last is lost.",
        finishing(whole_lanes),
        expects=("large layers",),
    ),
    miscomputing(
        "F65 rows",
        "F65 M17",
        "ColossalAI PR #5306",
        "The attention kernel takes rows of a batch in blocks, and what is left behind the last is lost.",
        finishing(_whole_rows),
        expects=("large layers",),
    ),
    miscomputing(
        "F65 wide norms",
        "F65",
        "DeepSpeed #491",
        "The norm kernel has so many threads, and elements beyond them are not normalised.",
        (fused_transformer, "normalise", _first_threads),
        expects=("large layers",),
    ),
    miscomputing(
        "F65 tiles",
        "F65",
        "DeepEP PR #413",
        "The MLP's kernel writes whole tiles of columns, and what is left behind the last stays zero.",
        (FusedMLP, "_inner", _whole_tiles),
        expects=("large layers",),
    ),
)
"""Wrong at sizes that random tiny models do not have."""
