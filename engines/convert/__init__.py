"""From one FP4 layout to another: MXFP4 to NVFP4, and NVFP4 between compressed-tensors and modelopt.

Decoded weights stay bit-equal, or the conversion is refused; every tensor is compared while it is written.
"""
