"""The 4-bit number formats as pure NumPy functions: E2M1, E8M0, E4M3, MXFP4, NVFP4.

Knows no files and no engine.
"""
