"""What is changed, set or put on a UNet or a VAE after it was replaced is heeded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor, nn

from harness.case import Case
from harness.properties import BY_NAME
from harness.properties.memory import bytes_held
from harness.properties.set_later import FREE_U, a_wrapper
from harness.properties.transforms import call_with
from harness.search import tell
from policies.fused import onednn, swapped, widened
from policies.plans import Plan
from policies.replace import replace_module

from .diffusion_pairs import CASES, UNET, VAE, assert_close, edits, example, pair

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("edit", edits().values(), ids=edits().keys())
def test_weights_that_change_after_the_replacement_are_seen(case: Case, edit: Any) -> None:
    original, replaced, inputs = pair(case)
    for _ in range(2):
        case.run(replaced, inputs)
        edit(original)
        edit(replaced)
        assert_close(case.run(replaced, inputs), case.run(original, inputs), 1e-4)
    assert not replaced.fused.fallbacks


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1)])
def test_another_processor_set_later_is_honoured(processor: Any) -> None:
    original, replaced, inputs = pair(UNET)
    for model in (original, replaced):
        model.set_attn_processor(processor)
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)
    refused = {"attention: processor SlicedAttnProcessor"} if type(processor) is SlicedAttnProcessor else set()
    assert set(replaced.fused.fallbacks) == refused


def test_a_processor_of_the_users_own_is_called() -> None:
    class Doubling(AttnProcessor2_0):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super().__call__(*args, **kwargs)

    original, replaced, inputs = pair(UNET)
    for model in (original, replaced):
        model.set_attn_processor(Doubling())
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)
    assert set(replaced.fused.fallbacks) == {"attention: processor Doubling"}


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "Attention", "GEGLU", "FeedForward"])
def test_hooks_on_inner_modules_fire_and_may_change_the_result(kind: str) -> None:
    original, replaced, inputs = pair(UNET)
    seen: list[nn.Module] = []

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(module)
        return 2 * output

    for model in (original, replaced):
        [one for one in model.modules() if type(one).__name__ == kind][-1].register_forward_hook(double)
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)
    assert len(seen) > 0 and len(seen) % 2 == 0


def test_a_weight_that_is_quantised_later_is_multiplied_by_its_own_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class says how, whatever dtype and device it shows."""

    class Quantised(Tensor):
        pass

    monkeypatch.setattr(swapped, "SMALLEST_PRODUCT", 0)
    layer = nn.Linear(8, 8)
    x = torch.randn(2, 8)
    expected = layer(x)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    for operators in (onednn, widened):
        monkeypatch.setattr(operators, "linear", None)
    assert torch.equal(swapped.apply(layer, x, Plan.ONEDNN), expected)


def test_an_adapter_around_a_projection_is_used() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.sum(-1, keepdim=True)

    original, replaced, inputs = pair(UNET)
    for model in (original, replaced):
        for module in list(model.modules()):
            for name in ("to_q", "to_v"):
                if hasattr(module, name):
                    plain = getattr(module, name)
                    adapted = Adapted(plain.in_features, plain.out_features, bias=plain.bias is not None)
                    adapted.load_state_dict(plain.state_dict())
                    setattr(module, name, adapted.eval())
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)


def put_a_module_around(model: nn.Module, path: str) -> None:
    """One that has nothing of the part's but its forward, and changes what that gives."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    dict(a_wrapper(owner))[f"a module around {name}"](owner)


@pytest.mark.parametrize("first", [False, True], ids=["after the replacement", "before the replacement"])
@pytest.mark.parametrize("format", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("case", "path"),
    [
        *((UNET, f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.{name}") for name in ("to_q", "to_k", "to_v")),
        *((UNET, path) for path in ("down_blocks.1", "mid_block", "conv_out")),
        *((VAE, f"decoder.{path}") for path in ("mid_block.attentions.0.to_q", "mid_block", "up_blocks.0", "conv_out")),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_a_module_around_any_part_is_called_and_the_image_has_the_originals_memory_format(
    case: Case, path: str, format: str, first: bool
) -> None:
    one = example(case, format=format, **({"blocks": "CD", "mid": "plain"} if case is UNET else {}))
    original = case.build(one)
    replaced = copy.deepcopy(original)
    if not first:
        replace_module(replaced)
        case.run(replaced, case.inputs(one))
    for model in (original, replaced):
        put_a_module_around(model, path)
    if first:
        replace_module(replaced)
    mine, its = (case.run(model, case.inputs(one)) for model in (replaced, original))
    assert_close(mine, its, 1e-5)
    assert mine["sample"].stride() == its["sample"].stride()


def test_another_last_convolution_or_none_is_called() -> None:
    original, replaced, inputs = pair(UNET)
    for last in (nn.Identity(), nn.Sequential(nn.Identity(), original.conv_out)):
        for model in (original, replaced):
            model.conv_out = last
        assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-5)


def test_attention_to_text_alone_whose_keys_are_none_is_the_originals() -> None:
    """In the blocks of Kandinsky: ``to_k`` is None there."""
    original, replaced, inputs = pair(UNET, blocks="SR", mid="simple", only_cross_attention=True)
    assert any(getattr(one, "to_k", one) is None for one in replaced.modules())
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-5)


def test_freeu_and_feed_forward_chunks_work_as_before() -> None:
    original, replaced, inputs = pair(UNET, blocks="CC")
    for model in (original, replaced):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)
    for model in (original, replaced):
        model.disable_freeu()
        for module in model.modules():
            if hasattr(module, "set_chunk_feed_forward"):
                module.set_chunk_feed_forward(2, dim=1)
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_compiled_replacement_computes_the_same_whatever_becomes_of_its_weights(case: Case) -> None:
    original, replaced, inputs = pair(case)
    torch.compiler.reset()
    compiled = torch.compile(replaced, backend="eager")
    assert_close(case.run(compiled, inputs), case.run(original, inputs), 1e-4)
    for edit in edits().values():
        edit(original)
        edit(replaced)
        assert_close(case.run(compiled, inputs), case.run(original, inputs), 1e-4)
    torch.compiler.reset()


def test_a_compiled_call_with_other_weights_for_its_parameters_uses_these() -> None:
    original, replaced, inputs = pair(UNET)
    torch.compiler.reset()
    weights = {name: 1.3 * one for name, one in original.named_parameters()}
    expected = call_with(weights, UNET.run, original, inputs)
    assert_close(torch.compile(call_with, backend="eager")(weights, UNET.run, replaced, inputs), expected, 1e-4)
    torch.compiler.reset()


def test_a_convolution_that_was_patched_on_the_instance_is_called() -> None:
    """As images that tile on one side are made."""
    original, replaced, inputs = pair(UNET)

    def doubled(self: nn.Conv2d, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 2 * nn.Conv2d._conv_forward(self, image, weight, bias)

    for one in (*original.modules(), *replaced.modules()):
        if isinstance(one, nn.Conv2d):
            one._conv_forward = doubled.__get__(one)
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)


def test_a_moved_model_keeps_nothing_of_the_weights_that_it_had() -> None:
    _, replaced, inputs = pair(UNET)
    UNET.run(replaced, inputs)
    held = bytes_held(replaced)
    assert bytes_held(replaced.to("meta")) < held / 10


def _image_adapter(unet: Any, width: int) -> dict[str, dict[str, Tensor]]:
    """Weights of an IP-Adapter for images embedded in ``width`` numbers, as its files have them."""
    text = unet.config.cross_attention_dim
    crossing = [unet.get_submodule(name.rpartition(".")[0]) for name in unet.attn_processors if "attn2" in name]
    sizes = {f"{2 * place + 1}.to_{one}_ip.weight": its.inner_dim for place, its in enumerate(crossing) for one in "kv"}
    projection = {"proj.weight": (4 * text, width), "proj.bias": (4 * text,), "norm.weight": (text,), "norm.bias": (text,)}
    return {
        "image_proj": {name: torch.randn(size) for name, size in projection.items()},
        "ip_adapter": {name: torch.randn(size, text) for name, size in sizes.items()},
    }


@pytest.mark.parametrize("plan", ["auto", "plain", "packed"])
def test_an_image_adapter_loaded_after_the_replacement_is_heeded_and_so_is_its_scale(plan: str) -> None:
    one = example(UNET, blocks="CD")
    torch.manual_seed(one.seed)
    original: Any = UNET.build(one)
    replaced: Any = copy.deepcopy(original)
    replace_module(replaced, plan=plan)
    kwargs = UNET.inputs(one).kwargs
    given: dict[str, Any] = {name: kwargs[name] for name in ("sample", "timestep", "encoder_hidden_states")}
    plain = original(**given).sample
    weights = _image_adapter(original, 10)
    for model in (original, replaced):
        model(**given)
        model._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    given["added_cond_kwargs"] = {"image_embeds": [torch.randn(len(kwargs["sample"]), 1, 10)]}
    seen = [plain]
    for scale in (1.0, 0.4):
        for model in (original, replaced):
            for processor in model.attn_processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = [scale]
        seen.append(original(**given).sample)
        assert_close({"sample": replaced(**given).sample}, {"sample": seen[-1]}, 1e-5)
    assert len({float(sample.sum()) for sample in seen}) == 3


def test_factors_that_are_read_when_a_model_is_replaced_and_not_when_they_are_set_are_noticed() -> None:
    """As of FreeU, which somebody switches on later."""

    def remembering(model: Any) -> Any:
        handle = replace_module(model)
        known = [{name: getattr(block, name, None) for name in FREE_U} for block in model.up_blocks]

        def as_known(*_: Any) -> None:
            for block, own in zip(model.up_blocks, known, strict=True):
                vars(block).update(own)

        model.register_forward_pre_hook(as_known)
        return handle

    failed, why = tell(BY_NAME["settings"], UNET, remembering, UNET.simplest)
    assert failed and "FreeU of the model, set after the replacement" in str(why)
