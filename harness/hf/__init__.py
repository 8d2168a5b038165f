"""What cases of transformers' models have in common, for cases of this package and for those derived from a layer."""
