"""A streamed answer, its usage, and a client that has heard enough."""

from __future__ import annotations

import os
import time

import openai

URL = os.environ.get("NYBBLE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("NYBBLE_MODEL", "nybble-demo")


def main() -> None:
    """Print tokens as they come; then stop another stream after five."""
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("NYBBLE_KEY", "none")) as client:
        started, first = time.perf_counter(), None
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "What is machine learning?"}],
            max_tokens=64,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            for choice in chunk.choices:
                first = first or time.perf_counter()
                print(choice.delta.content or "", end="", flush=True)
            if chunk.usage is not None:
                print(f"\n{chunk.usage.completion_tokens} tokens")
        if first is not None:
            print(
                f"first token after {first - started:.3f} s, all after {time.perf_counter() - started:.3f} s"
            )

        endless = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        for number, _ in enumerate(endless, 1):
            if number == 5:
                endless.close()  # the server notices and frees the request's memory
                break
        print(f"hung up after {number} chunks")


if __name__ == "__main__":
    main()
