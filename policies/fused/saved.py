"""What a ``state_dict`` gives of parameters that lie in one storage together: each in a storage of its own, over the same memory.

Libraries that save tell weights apart by their storages. Of several in one, ``safetensors.save_model`` makes an error, and
accelerate's ``save_model`` drops all but one and says that this is in order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from .transforms import plainly


class SavedApart(nn.Module):
    """Mixin that stands before an original class."""

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """As ever: what is written into a value reaches the parameter, and torch counts it there."""
        saved = super().state_dict(*args, prefix=prefix, **kwargs)
        for name, _ in self.named_parameters(remove_duplicate=False):
            value = saved.get(f"{prefix}{name}")
            if type(value) is Tensor and _is_part(value):
                _put_apart(value)
        return saved


def _is_part(values: Tensor) -> bool:
    """Whether ``values`` fill a part of a storage, which is real and which no other process knows."""
    in_one_piece = values.is_contiguous() or (values.dim() == 2 and values.t().is_contiguous())
    ours = values.device.type == "cuda" or (values.device.type == "cpu" and not values.is_shared())
    return ours and in_one_piece and values.untyped_storage().nbytes() > values.nbytes > 0


def _put_apart(values: Tensor) -> None:
    """Give ``values`` a storage that begins and ends where they do. Their version goes on being counted with the parameter's:
    ``data`` exchanges a storage alone."""
    with plainly():
        values.data = from_dlpack(values.detach())  # which holds that other tensor, and so the storage that it is a part of
