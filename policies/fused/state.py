"""What a replacement of a Transformer layer derives from its layer, and when that is made again.

It is a cache. It is made again whenever a parameter or a submodule of the layer is not the one it was made from, or what is
set on one is another value, so that ``.to()``, ``load_state_dict(assign=True)``, assigning a parameter, swapping a submodule or
setting an epsilon cannot leave it stale.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from typing import TYPE_CHECKING

import torch

from ..anatomy import LayerAnatomy
from ..plans import CAPTURED, Plan, in_words
from ..swap import UnsupportedLayer
from .compiled import CompiledLayer
from .gate import Gate
from .graphs import DEFAULT_LIMIT, Graphed
from .linear import Emit, by_rows
from .packed import release_all
from .transformer import FusedTransformerLayer, silent
from .transforms import lasting, plainly
from .watch import Settings, Watch

if TYPE_CHECKING:
    from ..base import AnatomyPolicy
    from .layer import FusedLayer


class FusedState:
    """What one replacement derived from its layer, and what has happened to it."""

    def __init__(self, layer: FusedLayer, policy: type[AnatomyPolicy], execution: Plan, *, shared: frozenset[str]) -> None:
        self.owner = weakref.ref(layer)
        self.policy = policy
        self.execution = execution
        self.shared = shared
        self.calls = 0
        self.fallbacks: Counter[str] = Counter()
        self.emit: Emit = silent
        self.gate = Gate()
        self.refusal: str | None = None
        self.core: FusedTransformerLayer | None = None
        """None of a layer that is refused."""
        self.graph: Graphed | None = None
        self.by_rows: bool
        self.watch: Watch
        self.settings: Settings
        self.bind(layer)

    @torch.compiler.disable
    def bind(self, layer: FusedLayer, read: LayerAnatomy | None = None) -> None:
        """Derive everything anew from ``layer``, or from what was ``read``. A layer that is no longer supported falls back from
        here on."""
        release_all(layer)
        self.graph = None  # what was captured may hold weights
        if read is None and self.core is not None and not self.core.attention.joins_what_is_in(layer):
            self.give_back(layer)
        ours = () if self.core is None else self.core.attention.held
        try:
            anatomy = read or self.policy(layer).anatomy
        except UnsupportedLayer as refusal:
            self.refusal = str(refusal)
            self.give_back(layer)
        else:
            self.refusal = None
            with lasting():
                if self.execution is Plan.ONEDNN:
                    layer._fused_by_rows |= by_rows(anatomy.linears, self.shared)
                self.by_rows = bool(layer._fused_by_rows)
                operators = Plan.PLAIN if self.execution in CAPTURED else self.execution
                self.core = FusedTransformerLayer(anatomy, operators, shared=self.shared, ours=ours)
            self.graph = self._graphed(self.core, layer) if self.execution in CAPTURED else None
        # Packed weights are given back behind the replacement's back: it has to find out from each of them. A graph reads each
        # of them where it was.
        all_of_them = self.core is None or self.execution in (Plan.PACKED, *CAPTURED)
        self.watch = Watch(layer, None if all_of_them or self.core is None else self.core.attention.joined)
        self.settings = Settings(layer, self.watch.modules, configured=self.policy.call.configured)

    def give_back(self, layer: FusedLayer) -> None:
        """Give what the core was made of, whatever ``layer`` still has of it, the storages and strides that it had, and keep
        nothing of it."""
        core, self.core = self.core, None
        if core is not None:
            with lasting(), plainly():
                core.give_back(layer._fused_by_rows)

    def still_read(self, layer: FusedLayer) -> bool:
        """True where no more than parameters of ``layer`` were exchanged."""
        return self.watch.same_modules(layer) and not self.settings.changed(layer)

    def of_export(self, layer: FusedLayer) -> FusedState:
        """For one call of an exporter, which has put tensors without values in the places of parameters. Values decide how some
        policies read, so that what was read before has to hold."""
        state = copy.copy(self)
        if self.core is not None:
            state.bind(layer, self.core.anatomy.with_parameters(layer))
        return state

    def _graphed(self, core: FusedTransformerLayer, layer: FusedLayer) -> Graphed:
        """The core behind captured graphs. What else it depends on, this state looks after: it is bound anew."""
        capturing = layer._fused_backend.made()
        return Graphed(
            core,
            backend=capturing,
            captured=CompiledLayer(core, capturing.compiler) if self.execution is Plan.COMPILED else None,
            modules=(layer,),
            watched=(),
            patience=2 * DEFAULT_LIMIT,
            veto=lambda: None if self.emit is silent else "its stages are asked for",
        )

    @property
    def graphs(self) -> dict[str, Graphed]:
        """The captured graphs by the name of what was captured, as a diffusion model's state has them."""
        return {} if self.graph is None else {"layer": self.graph}

    @property
    def plan(self) -> str:
        """How the replacement runs, in a word or two."""
        if self.core is None:
            return f"original ({self.refusal})"
        held = "" if self.core.packer is None else f", {self.core.packer}"
        packed = ", QKV packed" if self.core.attention.packed is not None else ""
        graphs = "" if self.graph is None else f" by {self.graph.backend.name}"
        plan = in_words(self.execution, (linear.weight for linear in self.core.anatomy.linears))
        return f"{plan}{graphs}{held}{packed}{', weights by rows' if self.by_rows else ''}"

    def edited(self, layer: FusedLayer) -> bool:
        """True where ``layer`` is not what the replacement was derived from, as far as a compiler can trace it."""
        return self.watch.exchanged() or self.settings.changed(layer)

    def stale(self, layer: FusedLayer) -> bool:
        """True where ``layer`` is not what the replacement was derived from, or more of its weights can be packed."""
        if self.watch.stale() or self.settings.changed(layer):
            return True
        return self.core is not None and self.core.may_pack_more()
