"""RoBERTa: transformers' copy of BERT, with positions counted from behind the padding index."""

from __future__ import annotations

from typing import Any, ClassVar

from harness.case import Example, Workload
from harness.hf import inputs as hf

from .bert import BASE, LARGE, BertCase


class RobertaCase(BertCase):
    name = "roberta"
    title = "RoBERTa layer"
    configuration = "transformers:RobertaConfig"
    model = "transformers:RobertaModel"
    layer = "transformers.models.roberta.modeling_roberta:RobertaLayer"
    workloads: ClassVar[tuple[Workload, ...]] = (
        Workload(name="roberta-base", phase="encoder", batch=1, tokens=128, config=BASE, weight_bytes=28_400_000),
        Workload(name="roberta-large", phase="encoder", batch=1, tokens=384, config=LARGE, weight_bytes=50_400_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return {**super().config_kwargs(example), "pad_token_id": 1, "max_position_embeddings": hf.positions(example) + 2}
