"""Timing replaced against original layers at real dimensions. Start at ``bench.run_jobs``."""
