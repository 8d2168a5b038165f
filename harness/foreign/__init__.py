"""What is found out about other people's replacements (``policies.foreign``)."""
