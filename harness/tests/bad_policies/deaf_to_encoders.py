"""Its layers, put in by a swap of its own, never attend to an encoder."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from policies.bert import HFBertLayerPolicy
from policies.fused.layer import LayerSwap
from policies.swap import Swap


class _Deaf(LayerSwap):
    def install(self) -> None:
        super().install()
        fused: Any = type(self.layer)

        @functools.wraps(fused.forward)
        def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(layer, fused):  # reverted, by somebody who has wrapped this method
                return fused.forward(layer, *args, **kwargs)
            return fused.forward(layer, *args[:2], **{**kwargs, "encoder_hidden_states": None})

        self.layer.__class__ = type(fused.__name__, (fused,), {"forward": forward})


class BadPolicy(HFBertLayerPolicy):
    """Its layers, put in by a swap of its own, never attend to an encoder."""

    layer_classes = HFBertLayerPolicy.layer_classes[:1]

    @classmethod
    def plan(cls, module: nn.Module) -> Swap:
        return _Deaf(module, cls)
