"""How a swap is timed: paired sampling, the interval, the verdict, devices, ceilings and the A/A lane.

Start at ``paired.compare``. Sampling (``paired``) and judging (``statistics``) are apart, so that a stored record can be
judged again and the statistics can be tested without a clock.
"""
