"""A bfloat16 checkpoint as OpenVINO IR with compressed weights, by OpenVINO's own tools under its Python.

    python -m engines.bench.peers.conversion.openvino_ir BFLOAT16_DIR IR_DIR MODE

MODE is mxfp4, nvfp4 or int4. Embedding and head become 8-bit integers, as the tools do by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import openvino
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

MODES = {
    "mxfp4": {"mode": nncf.CompressWeightsMode.MXFP4, "group_size": 32},
    "nvfp4": {"mode": nncf.CompressWeightsMode.NVFP4, "group_size": 16},
    "int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 128},
}


def convert(source: Path, target: Path, mode: str) -> None:
    """Export, compress, and write the model with the tokenizer that GenAI asks for."""
    from openvino_tokenizers import convert_tokenizer

    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, load_in_8bit=False, stateful=True
    )
    model.save_pretrained(target)
    exported = openvino.Core().read_model(target / "openvino_model.xml")
    compressed = nncf.compress_weights(exported, ratio=1.0, all_layers=False, **MODES[mode])
    openvino.save_model(compressed, target / "compressed.xml")
    del exported, compressed, model
    for suffix in (".xml", ".bin"):
        (target / f"compressed{suffix}").replace(target / f"openvino_model{suffix}")
    tokenizer = AutoTokenizer.from_pretrained(source)
    encode, decode = convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(encode, target / "openvino_tokenizer.xml")
    openvino.save_model(decode, target / "openvino_detokenizer.xml")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
