"""The peer: llm-compressor rounding one model to nearest, run by the Python of an environment that has it.

python llm_compressor_rtn.py SRC SCHEME THREADS    prints the seconds that `oneshot` took
"""

from __future__ import annotations

import sys
import time


def main() -> None:
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    source, scheme, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    started = time.perf_counter()
    oneshot(model=model, recipe=recipe)
    quantized = time.perf_counter()
    model.save_pretrained(sys.argv[4], save_compressed=True)
    print(f"seconds {quantized - started:.3f} saving {time.perf_counter() - quantized:.3f}")


if __name__ == "__main__":
    main()
