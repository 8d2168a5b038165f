"""Holds two policies, so that one has to be named."""

from __future__ import annotations

from harness.tests.bad_policies.tiny import Good, TinyLlama


class FirstPolicy(Good):
    """As good as the second."""


class SecondPolicy(Good):
    """As good as the first."""


class Case(TinyLlama):
    """The case beside the policies."""
