"""Replaced models straight from a safetensors checkpoint: ``load_replaced``.

``stored`` is what lies on disk, ``skeleton`` the model before it has weights, ``names`` which entry goes where, ``fill``
how it gets there, ``load`` the whole.
"""
