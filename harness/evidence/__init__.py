"""What points at the cause of a failure: the smallest example, the nearest that passes, the stage, and a script.

Each part is gathered on its own and may fail on its own; none of them may hide the failure that it belongs to.
"""
