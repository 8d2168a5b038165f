"""Lowers the precision of products for everybody when it is imported."""

from __future__ import annotations

import torch

from harness.tests.bad_policies.tiny import Good, TinyLlama

torch.set_float32_matmul_precision("medium")


class BadPolicy(Good):
    """Lowers the precision of products for everybody when it is imported."""


class Case(TinyLlama):
    """The case beside the policy."""
