"""Whether a replacement changes what all models of a process share, the original that it is compared with among them.

Some replacements put their functions where a library keeps its own: in its modules, on its classes, in its tables of
activations and attentions; or they set what torch goes by, as the precision of products. The reference then computes with it
too, and what is wrong is wrong on both sides. So what each name of the libraries stands for is remembered when its module is
first seen, and what torch is set to, and the process itself, before anything has been replaced.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from operator import is_
from types import ModuleType
from typing import Any

import torch
import torch._dynamo  # exchanges torch.manual_seed when it is imported, which is to have happened
from torch import Tensor

COMPUTING = (
    "torch",
    "torch.functional",
    "torch._tensor",
    "torch._C._nn",
    "torch.nn.",
    "transformers.models.",
    "transformers.integrations.",
    "transformers.activations",
    "transformers.cache_utils",
    "transformers.masking_utils",
    "transformers.modeling_",
    "transformers.pytorch_utils",
    "diffusers.models.",
    "megatron.core.",
)
"""Modules, and packages or beginnings where that ends in a dot or a dash, in which models compute: a tenth of all that the
libraries import."""
_COMPILER = "torch._dynamo."
"""It puts functions of its own on ``nn.Module`` when it first compiles."""


@dataclass(frozen=True, eq=False)
class Difference:
    """Something that is not what it was: ``now``, until ``put_back`` is called."""

    now: Any
    put_back: Callable[[], None]


class _Names:
    """The names of a module or of a table, and what code they stand for."""

    def __init__(self, where: str, held: dict[Any, Any], get: Callable[[Any], Any], put: Callable[[Any, Any], None]) -> None:
        code = {name: value for name, value in held.items() if _is_code(value)}
        self.where = where
        self._names = (*code,)
        self._values = (*code.values(),)
        self._get = get
        self._put = put

    def changed(self) -> Iterator[tuple[Any, Difference]]:
        """It runs beside every property: that nothing has changed is told of 10,000 names in two milliseconds."""
        if all(map(is_, map(self._get, self._names), self._values)):
            return
        for name, value in zip(self._names, self._values, strict=True):
            now = self._get(name)
            if now is not value and not (getattr(now, "__module__", None) or "").startswith(_COMPILER):
                yield name, Difference(now, functools.partial(self._put, name, value))


class _ClassNames(_Names):
    """The names of a class, and those that it had of a base and may have of its own later."""

    def __init__(self, where: str, owner: type) -> None:
        super().__init__(where, dict(vars(owner)), vars(owner).get, functools.partial(setattr, owner))
        self._owner = owner
        self._own = frozenset(vars(owner))

    def changed(self) -> Iterator[tuple[Any, Difference]]:
        yield from super().changed()
        now = vars(self._owner)
        if len(now) != len(self._own):
            for name in now.keys() - self._own:
                if _is_code(now[name]) and any(name in vars(base) for base in self._owner.__mro__[1:]):
                    yield name, Difference(now[name], functools.partial(delattr, self._owner, name))


@dataclass(frozen=True)
class _Setting:
    """One thing that torch, or the process, is set to."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]


def _attribute(name: str, owner: Any, attribute: str) -> _Setting:
    return _Setting(name, lambda: getattr(owner, attribute), functools.partial(setattr, owner, attribute))


_BACKENDS: Any = torch.backends


def _denormal() -> bool:
    """Whether they are flushed to zero."""
    return bool(torch.tensor(1e-40).mul(1.0) == 0.0)


def _precision_of_products() -> str | None:
    """None where torch does not say: its newer settings, which are watched as well, may be such that this one has no name."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_precision_of_products(precision: str | None) -> None:
    if precision is not None:
        torch.set_float32_matmul_precision(precision)


def _products(name: str, backend: Any) -> _Setting:
    """That nothing is set, or all bits: torch's older setting makes the one the other."""

    def get() -> str:
        said = str(backend.matmul.fp32_precision)
        return "ieee" if said == "none" else said

    return _Setting(f"the precision of {name}", get, functools.partial(setattr, backend.matmul, "fp32_precision"))


READ_FROM_THE_ENVIRONMENT = ("CUBLAS_", "CUDA_", "DNNL_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_")
"""How variables begin that libraries that compute go by, and with them whoever is started from here."""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(READ_FROM_THE_ENVIRONMENT)}


def _set_environment(variables: dict[str, str]) -> None:
    for name in _environment().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


SETTINGS = (
    _Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("the default device", torch.get_default_device, lambda _: torch.set_default_device(None)),
    _Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("the precision of products", _precision_of_products, _set_precision_of_products),
    *(
        _attribute(f"the precision of {name}", backend, "fp32_precision")
        for name, backend in (
            ("float32", _BACKENDS),
            ("cuDNN", _BACKENDS.cudnn),
            ("convolutions", _BACKENDS.cudnn.conv),
            ("recurrent layers", _BACKENDS.cudnn.rnn),
            ("oneDNN", _BACKENDS.mkldnn),
            ("convolutions by oneDNN", _BACKENDS.mkldnn.conv),
            ("recurrent layers by oneDNN", _BACKENDS.mkldnn.rnn),
        )
    ),
    _products("products on a GPU", _BACKENDS.cuda),
    _products("products by oneDNN", _BACKENDS.mkldnn),
    _Setting("numbers too small for their exponent", _denormal, torch.set_flush_denormal),
    _Setting("deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *(
        _Setting(
            f"autocast on {device}",
            functools.partial(torch.is_autocast_enabled, device),
            functools.partial(torch.set_autocast_enabled, device),
        )
        for device in ("cpu", "cuda")
    ),
    *(
        _Setting(
            f"autocast's dtype on {device}",
            functools.partial(torch.get_autocast_dtype, device),
            functools.partial(torch.set_autocast_dtype, device),
        )
        for device in ("cpu", "cuda")
    ),
    _Setting(
        "new parameters where a module is moved",
        torch.__future__.get_overwrite_module_params_on_conversion,
        torch.__future__.set_overwrite_module_params_on_conversion,
    ),
    *(_attribute(f"cuDNN: {one}", _BACKENDS.cudnn, one) for one in ("enabled", "benchmark", "deterministic")),
    *(
        _attribute(f"sums in {dtype}", _BACKENDS.cuda.matmul, f"allow_{dtype}_reduced_precision_reduction")
        for dtype in ("fp16", "bf16")
    ),
    _attribute("oneDNN", _BACKENDS.mkldnn, "enabled"),
    _Setting("fast paths of torch's own Transformer", _BACKENDS.mha.get_fastpath_enabled, _BACKENDS.mha.set_fastpath_enabled),
    _Setting("the collector of garbage", gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    _Setting("variables of the environment", _environment, _set_environment),
    _Setting("the root logger's level", lambda: logging.root.level, logging.root.setLevel),
    _Setting("flash attention", _BACKENDS.cuda.flash_sdp_enabled, _BACKENDS.cuda.enable_flash_sdp),
    _Setting("efficient attention", _BACKENDS.cuda.mem_efficient_sdp_enabled, _BACKENDS.cuda.enable_mem_efficient_sdp),
    _Setting("cuDNN's attention", _BACKENDS.cuda.cudnn_sdp_enabled, _BACKENDS.cuda.enable_cudnn_sdp),
    _Setting("plain attention", _BACKENDS.cuda.math_sdp_enabled, _BACKENDS.cuda.enable_math_sdp),
)


class Shared:
    """What the models of this process share, as it was when first seen."""

    def __init__(self) -> None:
        self._imported = 0
        self._modules: set[str] = set()
        self._names: list[_Names] = []
        self._settings: tuple[Any, ...] | None = None
        self.exchanged: set[str] = set()
        """What the surroundings of a case have exchanged while they were open."""

    def look(self) -> None:
        """Remember the modules that were not there the last time."""
        if len(sys.modules) == self._imported:
            return
        self._imported = len(sys.modules)
        for name, module in tuple(sys.modules.items()):
            if name not in self._modules and _computes(name) and isinstance(module, ModuleType):
                self._modules.add(name)
                self._names += _names_of(name, module)

    def look_at(self, modules: Iterable[str] = ()) -> None:
        """Import those of ``modules`` in which models compute, and remember them and, the first time, what torch is set to."""
        for name in filter(_computes, modules):
            with contextlib.suppress(Exception):  # whoever needs it will say so
                import_module(name)
        self.look()
        if self._settings is None:
            self._settings = tuple(one.get() for one in SETTINGS)

    @contextlib.contextmanager
    def as_it_is(self) -> Iterator[None]:
        """Inside, what has been changed so far is no change."""
        accepted = self.differences().keys() - self.exchanged
        self.exchanged |= accepted
        try:
            yield
        finally:
            self.exchanged -= accepted

    def differences(self) -> dict[str, Difference]:
        """What is not as it was, by name."""
        code = {f"{names.where}.{name}": difference for names in self._names for name, difference in names.changed()}
        settings = {
            one.name: Difference(now, functools.partial(one.put, before))
            for one, before in zip(SETTINGS, self._settings or (), strict=self._settings is not None)
            if (now := one.get()) != before
        }
        return code | settings


SHARED = Shared()


def _names_of(name: str, module: ModuleType) -> Iterator[_Names]:
    own = dict(vars(module))
    if name == "torch":
        del own["Storage"]  # follows the default dtype
    yield _Names(name, own, vars(module).get, functools.partial(setattr, module))
    for key, value in own.items():
        if isinstance(value, type):
            if value.__module__ == name and (name != "torch" or value is Tensor):  # a module of a thousand other things
                yield _ClassNames(f"{name}.{key}", value)
        elif isinstance(value, dict) and _holds_code(name, key):  # its own ``get`` may make what it holds anew
            yield _Names(
                f"{name}.{key}",
                dict(dict.items(value)),
                functools.partial(dict.get, value),
                functools.partial(dict.__setitem__, value),
            )
        elif isinstance(value, MutableMapping) and _holds_code(name, key):
            yield _Names(f"{name}.{key}", dict(value), value.get, value.__setitem__)


def _computes(module: str) -> bool:
    return any(module.startswith(one) if one[-1] in "._" else module == one for one in COMPUTING)


def _holds_code(module: str, name: str) -> bool:
    """Whether a table is one of an architecture library's: those of torch are caches as well."""
    return not module.startswith("torch") and not name.startswith("__")


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, staticmethod | classmethod | property)
