"""TensorRT-LLM: the build stage (plan, prepare, build, verify, manifest) and the engine that serves it."""
