"""Seeded faults: the harness's exam. Mistakes that layer replacements have really made, made again on purpose and
counted: how many are noticed, by which property, after how many examples; and whether honest rewrites pass."""
