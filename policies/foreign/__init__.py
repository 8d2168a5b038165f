"""Other people's replacements, unmodified: one file an adapter, each with an optional extra.

They stand here and not in the harness because they only say how something is replaced; what is found out about them is
``harness.foreign``'s. Nothing foreign is imported until it is used.
"""
