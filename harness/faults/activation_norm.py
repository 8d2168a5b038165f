"""Faults of activations, norms, residuals and optional parameters."""

from __future__ import annotations

from torch import Tensor

from policies.anatomy import ActivationKind, LayerAnatomy, Linear, Norm, NormKind, NormPosition

from .edits import change, each_attention, each_linear, each_norm, each_qkv, self_attention, the_mlp, without_bias
from .fault import Edit, misreading


def _activation(kind: ActivationKind, *instead_of: ActivationKind) -> Edit:
    """Take activations (of ``instead_of`` only, if given) for ``kind``."""

    def edit(anatomy: LayerAnatomy) -> LayerAnatomy:
        activation = anatomy.mlp.activation
        if instead_of and activation.kind not in instead_of:
            return anatomy
        return the_mlp(lambda mlp: change(mlp, activation=change(activation, kind=kind)))(anatomy)

    return edit


def _eps(eps: float) -> Edit:
    return each_norm(lambda norm: change(norm, eps=eps))


def _one_eps(anatomy: LayerAnatomy) -> LayerAnatomy:
    return each_norm(lambda norm: change(norm, eps=anatomy.attention_norm.eps))(anatomy)


def _swapped_norms(anatomy: LayerAnatomy) -> LayerAnatomy:
    if anatomy.mlp_norm is None:
        return anatomy
    return change(anatomy, attention_norm=anatomy.mlp_norm, mlp_norm=anatomy.attention_norm)


def _flipped_position(anatomy: LayerAnatomy) -> LayerAnatomy:
    if anatomy.parallel:
        return anatomy
    before = anatomy.norm_position is NormPosition.PRE
    return change(anatomy, norm_position=NormPosition.POST if before else NormPosition.PRE)


def _encoder_of_the_library(anatomy: LayerAnatomy) -> LayerAnatomy:
    return _activation(ActivationKind.RELU)(_flipped_position(anatomy))


def _flipped_parallel(anatomy: LayerAnatomy) -> LayerAnatomy:
    if anatomy.cross_attention is not None or anatomy.norm_position is NormPosition.POST:
        return anatomy
    return change(anatomy, parallel=not anatomy.parallel, mlp_norm=anatomy.mlp_norm or anatomy.attention_norm)


def _shared_norm(anatomy: LayerAnatomy) -> LayerAnatomy:
    return change(anatomy, mlp_norm=None) if anatomy.parallel else anatomy


def _flipped_residual(anatomy: LayerAnatomy) -> LayerAnatomy:
    if anatomy.parallel or anatomy.norm_position is NormPosition.POST:
        return anatomy
    return change(anatomy, residual_from_norm=not anatomy.residual_from_norm)


def _left_over(linear: Linear) -> Linear:
    """A bias that the layer has not got, with whatever its memory held."""
    if linear.bias is not None:
        return linear
    return change(linear, bias=linear.weight.detach().new_full((linear.weight_out_in.shape[0],), 0.7))


def _left_over_norm(norm: Norm) -> Norm:
    if norm.kind is NormKind.RMS or norm.bias is not None or norm.weight is None:
        return norm
    return change(norm, bias=norm.weight.detach().new_full(norm.weight.shape, 0.7))


def _without_gain(norm: Norm) -> Norm:
    return change(norm, weight=None)


def _scaled_bias(linear: Linear) -> Linear:
    return linear if linear.bias is None else change(linear, bias=linear.bias.detach() * 2)


def _half(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().half().to(tensor.dtype)


_GELU_KINDS = (ActivationKind.QUICK_GELU, ActivationKind.GELU_TANH, ActivationKind.GELU_TANH_SHORT)

ACTIVATION_NORM = (
    misreading(
        "F01 relu",
        "F01 F06 M01",
        "DeepSpeed #3263",
        "Every activation is taken for ReLU, the one that the first models of the family had.",
        _activation(ActivationKind.RELU),
    ),
    misreading(
        "F02 gelu",
        "F02 F03 M01",
        "DeepSpeed PR #3278, PR #3400",
        "A comparison where an assignment was meant leaves every activation at the default, GELU.",
        _activation(ActivationKind.GELU),
    ),
    misreading(
        "M01 tanh",
        "M01",
        "DeepSpeed #3263",
        "The GELU kernel computes the tanh approximation where the layer has the exact function.",
        _activation(ActivationKind.GELU_TANH, ActivationKind.GELU),
    ),
    misreading(
        "F51 quick",
        "F51 M01",
        "optimum #1435",
        "Approximations of GELU are all computed as the exact one.",
        _activation(ActivationKind.GELU, *_GELU_KINDS),
    ),
    misreading(
        "F09 unknown",
        "F09",
        "huggingface_hub #1460",
        "An activation that the kernel has not got is computed as the nearest that it has.",
        _activation(ActivationKind.GELU, ActivationKind.OWN),
    ),
    misreading(
        "F06 encoder",
        "F06",
        "LightSeq #112",
        "A library's own encoder layer is swapped in: norms on the other side, ReLU for GELU.",
        _encoder_of_the_library,
    ),
    misreading(
        "F04 eps",
        "F04 M02",
        "DeepSpeed PR #791",
        "Norms use the kernel's default eps of 1e-12.",
        _eps(1e-12),
    ),
    misreading(
        "F05 eps",
        "F05 M02",
        "DeepSpeed 0.7.7 replace_module.py",
        "Norms use an eps guessed from a configuration attribute that is not there.",
        _eps(1e-5),
    ),
    misreading(
        "M02 one eps",
        "M02 F09",
        "optimum #423",
        "The eps of the first norm is used for the others too.",
        _one_eps,
    ),
    misreading(
        "F26 norms",
        "F26 M03",
        "DeepSpeed PR #3608",
        "The two norms of the layer change places.",
        _swapped_norms,
    ),
    misreading(
        "F10 position",
        "F10 F11 M03",
        "DeepSpeed #2729, PR #2541",
        "Pre-norm is taken for post-norm, and post-norm for pre-norm.",
        _flipped_position,
    ),
    misreading(
        "M04 parallel",
        "M04",
        "read in DeepSpeed's GPT-NeoX policy",
        "Parallel attention and MLP are computed one after the other, and sequential ones in parallel.",
        _flipped_parallel,
    ),
    misreading(
        "M04 one norm",
        "M04",
        "read in DeepSpeed's GPT-J policy",
        "A parallel MLP reads the attention's norm instead of its own.",
        _shared_norm,
    ),
    misreading(
        "M04 residual",
        "M04",
        "read in DeepSpeed's BLOOM policy",
        "The residual starts on the wrong side of the norm.",
        _flipped_residual,
    ),
    misreading(
        "F07 offset",
        "F07",
        "Liger-Kernel #74",
        "RMS norm gains are read as offsets from one.",
        each_norm(lambda norm: norm if norm.kind is NormKind.LAYER else change(norm, gain_offset=1.0)),
    ),
    misreading(
        "F07 gain",
        "F07 F14",
        "Liger-Kernel #85",
        "Norms run without their gains.",
        each_norm(_without_gain),
    ),
    misreading(
        "F07 centred",
        "F07",
        "axolotl #1886",
        "A LayerNorm is computed as an RMS norm: the mean is not taken off.",
        each_norm(lambda norm: change(norm, kind=NormKind.RMS)),
    ),
    misreading(
        "M05 norm bias",
        "M05",
        "DeepSpeed #3604",
        "Norms lose their biases.",
        each_norm(lambda norm: change(norm, bias=None)),
    ),
    misreading(
        "F14 linear",
        "F14 M05",
        "DeepSpeed PR #3639",
        "A bias that the layer has not got keeps what its memory held.",
        each_linear(_left_over),
    ),
    misreading(
        "F14 norm",
        "F14 M05",
        "DeepSpeed PR #3639",
        "A norm bias that the layer has not got keeps what its memory held.",
        each_norm(_left_over_norm),
    ),
    misreading(
        "F30 qkv bias",
        "F30 M05",
        "diffusers PR #6571",
        "Fusing queries, keys and values loses their biases.",
        each_attention(each_qkv(without_bias)),
    ),
    misreading(
        "M05 out bias",
        "M05",
        "DeepSpeed #3604",
        "The attention's output projection loses its bias.",
        each_attention(lambda attention: change(attention, out=without_bias(attention.out))),
    ),
    misreading(
        "M05 up bias",
        "M05",
        "DeepSpeed #3604",
        "The MLP's first projection loses its bias.",
        the_mlp(lambda mlp: mlp if mlp.up is None else change(mlp, up=without_bias(mlp.up))),
    ),
    misreading(
        "M05 down bias",
        "M05",
        "DeepSpeed #3604",
        "The MLP's last projection loses its bias.",
        the_mlp(lambda mlp: change(mlp, down=without_bias(mlp.down))),
    ),
    misreading(
        "F15 bias twice",
        "F15",
        "DeepSpeed PR #2310",
        "The attention's output bias is added once more than it should be.",
        self_attention(lambda attention: change(attention, out=_scaled_bias(attention.out))),
    ),
    misreading(
        "F31 half bias",
        "F31",
        "DeepSpeed PR #1204",
        "Biases of the QKV projection are rounded to half precision in a model of any dtype.",
        each_attention(each_qkv(lambda one: one if one.bias is None else change(one, bias=_half(one.bias)))),
        expects=("contract", "rounding float32"),
    ),
)
"""Everything here is a wrong description."""
