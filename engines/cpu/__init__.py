"""Our own runtime for FP4 checkpoints on a CPU: engine loop, model runner, models, sampler and C++ kernels."""
