"""What each script does once it has a layer and its policy: show one fault, in a few lines of plain torch."""

from __future__ import annotations

_GET_HEADS = """
    model, layer, policy = made()
    hidden, heads, *_ = policy.get_hidden_heads()
    rows = policy.attention()[0].shape[0]
    print(f"it says {{heads}} heads and a hidden size of {{hidden}}, and promises {{3 * hidden}} rows of query, key and "
          f"value: there are {{rows}}")
    return int(rows != 3 * hidden)
"""

_BIASES = """
    model, layer, policy = made()
    own = [name for name, _ in layer.named_parameters() if name.endswith(".bias") and {within!r} in name]
    said = policy.{method}()
    print(f"the layer has {{', '.join(own)}}; {method}() gives {{[None if one is None else tuple(one.shape) for one in said]}}")
    return int(bool(own) and said[1] is None)
"""


def _raises(method: str) -> str:
    return f'''
    model, layer, policy = made()
    try:
        policy.{method}()
    except Exception as problem:
        print(f"{method}() raises {{{{type(problem).__name__}}}}: {{{{problem}}}}")
        return 1
    print("{method}() answers")
    return 0
'''


BODIES: dict[str, str] = {
    "activation": """
    model, layer, policy = made()
    own = attrgetter({activation!r})(layer)
    said = {{1: F.gelu, 2: F.relu, 3: F.gelu, 4: F.silu}}[int(policy.mlp_act_func_type)]
    x = torch.linspace(-6.0, 6.0, 240)
    gap = float((own(x) - said(x)).abs().max())
    print(f"it says {{policy.mlp_act_func_type.name}}; the layer has {{own}}, which differs by up to {{gap:.2g}}")
    return int(gap > 1e-3)
""",
    "GELU form": """
    from deepspeed.ops.transformer.inference.op_binding.bias_gelu import BiasGeluOp

    model, layer, policy = made()
    own = attrgetter({activation!r})(layer)
    x = torch.linspace(-6.0, 6.0, 240)
    gap = float((own(x) - BiasGeluOp.bias_gelu_fallback(x, torch.zeros(240))).abs().max())
    print(f"it says {{policy.mlp_act_func_type.name}}, which its kernels take for the tanh form; the layer's differs by up "
          f"to {{gap:.2g}}")
    return int(gap > 1e-5)
""",
    "eps": """
    model, layer, policy = made()
    found = {{name: getattr(one, "eps", getattr(one, "variance_epsilon", None)) for name, one in layer.named_modules()}}
    found = {{name: eps for name, eps in found.items() if eps is not None}}
    name = next(iter(found))
    first = layer.get_submodule(name)
    found[name] *= 300  # as somebody may have set it: norms of a layer are modules of their own
    setattr(first, "eps" if hasattr(first, "eps") else "variance_epsilon", found[name])
    said = policy.get_hidden_heads()[2]
    print(f"the norms have eps {{found}}; it says one eps for all: {{said}}")
    return int(any(eps != said for eps in found.values()))
""",
    "norm position": """
    model, layer, policy = made()
    order = []
    layer.get_submodule({attention_norm!r}).register_forward_hook(lambda *_: order.append("norm"))
    layer.get_submodule({attention!r}).register_forward_hook(lambda *_: order.append("attention"))
    model(torch.tensor([[3, 4, 5]]))
    before = order[0] == "norm"
    print(f"it says pre_attn_norm={{policy.pre_attn_norm}}; the layer runs {{order[0]}} first, then {{order[1]}}")
    return int(before != policy.pre_attn_norm)
""",
    "attention biases": _BIASES.replace("{within!r}", "'attn'").replace("{method}", "attention"),
    "MLP biases": _BIASES.replace("{within!r}", "'mlp'").replace("{method}", "mlp"),
    "attention()": _raises("attention"),
    "get_hidden_heads()": _raises("get_hidden_heads"),
    "mlp()": _raises("mlp"),
    "layernorm()": _raises("layernorm"),
    "heads": _GET_HEADS,
    "grouped heads": _GET_HEADS,
    "inner size": """
    from deepspeed.module_inject.auto_tp import ReplaceWithTensorSlicing

    model, layer, policy = made()
    hidden, _, _, said = policy.get_hidden_heads()
    rows = policy.mlp()[2].numel() // hidden
    wide = 4 * hidden if said == -1 else said
    kept = ReplaceWithTensorSlicing().copy(torch.zeros(hidden, 4 * hidden), torch.ones(hidden, 5 * hidden)).shape[1]
    print(f"it says an MLP of {{wide}}; this one is {{rows}} wide. Of one 5 x hidden wide, its injection keeps {{kept}} of "
          f"{{5 * hidden}}")
    return int(wide != rows)
""",
    "scale": """
    model, layer, policy = made()
    own = layer.get_submodule({attention!r}).scaling
    size = policy.get_hidden_heads()[0] // policy.get_hidden_heads()[1]
    said = size**-0.5 if policy.scale_attention else 1.0
    print(f"it says scale_attention={{policy.scale_attention}}, a scale of {{said:.3g}}; the layer's is {{own:.3g}}")
    return int(abs(own - said) > 1e-6)
""",
    "whole layer": """
    model, layer, policy = made()
    said = [one for method in (policy.attention, policy.mlp, policy.layernorm) for one in method() if one is not None]
    left = [name for name, _ in layer.named_parameters() if "cross" in name]
    total, told = sum(one.numel() for one in layer.parameters()), sum(one.numel() for one in said)
    print(f"it gives {{told}} of the layer's {{total}} numbers; among those left out: {{', '.join(left[:3])}} ...")
    return int(told < total)
""",
    "norms": """
    model, layer, policy = made()
    said, own = policy.layernorm()[0], layer.get_submodule({between!r})
    named = [name for name, one in layer.named_modules() if said is not None and getattr(one, "weight", None) is said]
    print(f"between attention and MLP it says {{named[0] if named else 'that there is no norm'}}; the layer has {between}, "
          f"{{own}}")
    return int(said is None or said is not own.weight)
""",
    "norm kind": """
    model, layer, policy = made()
    layer.input_layernorm.apply_layernorm_1p = True
    with torch.no_grad():
        layer.input_layernorm.weight.zero_()  # gains of one, stored less one
    said = policy.layernorm()[2]
    print(f"gains stored less one (apply_layernorm_1p) are given as they are stored: {{said[:2].tolist()}} for gains of 1.0")
    return int(float(said[0]) == 0.0)
""",
    "QKV order": """
    model, layer, policy = made()
    print(f"megatron_v2={{policy.is_megatron_v2}} whatever the layer: a class attribute, although a layer whose attention "
          "is called 'attention' (Megatron-LM 1) has its queries, keys and values in blocks")
    return int(policy.is_megatron_v2 is True)
""",
    "residual wiring": """
    from deepspeed.inference.config import DeepSpeedInferenceConfig
    from deepspeed.module_inject.utils import policy_to_ds_container

    model, layer, policy = made()
    config = DeepSpeedInferenceConfig(dtype=torch.float32, replace_with_kernel_inject=True)
    container = policy_to_ds_container(policy=policy, config=config, model_config=model.config, layer_id=0, child=layer)
    print(f"mlp_after_attn={{container.mlp_after_attn}}, because the layer has rotary positions; the layer has "
          f"use_parallel_residual={{layer.use_parallel_residual}}")
    return int(container.mlp_after_attn == layer.use_parallel_residual)
""",
    "matches": """
    {policy}(None, inference=True)
    print(f"made once for None, as DeepSpeed's injection does, it knows these classes: {{{policy}._orig_layer_class}}")
    return int(not {policy}._orig_layer_class)
""",
    "container": """
    from deepspeed.inference.config import DeepSpeedInferenceConfig
    from deepspeed.module_inject.utils import policy_to_ds_container

    model, layer, policy = made()
    config = DeepSpeedInferenceConfig(dtype=torch.float32, replace_with_kernel_inject=True)
    try:
        container = policy_to_ds_container(policy=policy, config=config, model_config=model.config, layer_id=0, child=layer)
        container.set_moe(False)
    except Exception as problem:
        print(f"what DeepSpeed does next with the policy raises {{type(problem).__name__}}: {{problem}}")
        return 1
    print("the container can be made")
    return 0
""",
    "flags": """
    found = [{policy}(None, inference=True, **{{{flag!r}: value}}).{attribute} for value in (False, True)]
    print(f"{flag}=False and True give {attribute}={{found[0]}} and {{found[1]}}: the argument is stored and not passed on")
    return int(found[0] == found[1])
""",
    "names": """
    import {module} as containers

    class Asked(dict):
        names = []

        def __contains__(self, name):
            self.names.append(name)
            return False

    model, layer, policy = made()
    own, asked = policy.client_module.state_dict(), Asked()
    container = next(one for name, one in vars(containers).items() if name.startswith("DS_") and name.endswith("Container"))
    error = None
    try:
        target = SimpleNamespace(attention=None, mlp=SimpleNamespace())
        container.load_params(SimpleNamespace(policy=policy), target, asked, None, None, "")
    except Exception as problem:
        error = f"load_params raises {{type(problem).__name__}}: {{problem}}"
    missing = [name for name in asked.names if name not in own]
    print("; ".join(filter(None, [error, missing and f"not in the layer: {{missing}}"])))
    return int(bool(error or missing))
""",
}
"""By fact, or by check."""
