"""Patches of what a fused layer understands of each call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from policies.anatomy import Attention
from policies.fused import layer as fused_layer
from policies.fused.arguments import Arguments
from policies.fused.attention import AttentionCall

from .fault import Patch


def calling(edit: Callable[[AttentionCall, Attention], AttentionCall]) -> Patch:
    """A patch of what the fused layer understands of each call."""

    def make(honest: Any) -> Any:
        def wrong(convention: Any, core: Any, *rest: Any) -> Arguments:
            arguments: Arguments = honest(convention, core, *rest)
            return dataclasses.replace(arguments, call=edit(arguments.call, core.anatomy.attention))

        return wrong

    return fused_layer, "read_arguments", make


def past_tokens(call: AttentionCall, attention: Attention) -> int:
    """How many tokens the call's cache holds for this layer."""
    return 0 if call.cache is None else int(call.cache.get_seq_length(attention.cache_index))
