"""The rounding tier: in float32, bfloat16 and float16 a replacement may not round much worse than the original does.

The exact tier asks whether two layers are the same function. This one asks whether the replacement computes it as
carefully: statistics, softmax and sums in the precision that the dtype deserves. What is compared are errors against
the exact result (float64 on the same rounded parameters and inputs), never the two results with each other.
"""
