"""Timing replaced against original layers at real dimensions. Start at ``rows.time_job``."""
