"""From a BF16 checkpoint to an answer: quantise, serve, ask.

    python examples/quantize_and_serve.py SOURCE DESTINATION CALIBRATION.jsonl

SOURCE is a Hugging Face folder of a Mistral, Mixtral or Llama; tests/golden/base-mistral is a tiny one.
CALIBRATION has lines like {"text": "..."}, from which the range of each layer's inputs is found.
"""

from __future__ import annotations

import re
import subprocess
import sys

import openai


def main(source: str, destination: str, calibration: str) -> None:
    """Leaves the NVFP4 checkpoint in DESTINATION; the server ends with the script."""
    target = ["--format", "nvfp4", "--layout", "modelopt", "--calibration", calibration]
    subprocess.run(["nybble", "quantize", source, destination, *target], check=True)
    command = ["nybble", "serve", destination, "--engine", "cpu", "--port", "0", "--health-port", "off"]
    server = subprocess.Popen([*command, "--served-model-name", "mine"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = ""
        for line in server.stderr:
            url = next(iter(re.findall(r"listening on (http://\S+)", line)), url)
            if " ready: " in line:
                break
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answer = client.completions.create(model="mine", prompt="The capital of France is", max_tokens=8)
        print(f"answered: {answer.choices[0].text!r}")
    finally:
        server.terminate()
        server.stderr.close()
        server.wait(timeout=60)


if __name__ == "__main__":
    main(*sys.argv[1:])
