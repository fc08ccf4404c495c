"""Other systems on the same model, in the same minutes: llama.cpp, OpenVINO, vLLM, Transformers."""
