"""Our own runtime for FP4 checkpoints on a CPU: engine loop, models, sampler and C++ kernels."""
