"""Names the class of a layer by itself, where a name is asked for."""

from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from harness.tests.bad_policies.tiny import Good


class NamesNoLayer(Good):
    layer_classes = (LlamaDecoderLayer,)
