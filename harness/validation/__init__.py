"""Policies from outside the tree: a case is derived, the policy judged in processes of its own, a verdict given."""
