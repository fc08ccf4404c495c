"""A conversation through the official OpenAI client."""

from __future__ import annotations

import os

import openai

URL = os.environ.get("NYBBLE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("NYBBLE_MODEL", "nybble-demo")


def main() -> None:
    """Two turns; the second needs the first."""
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("NYBBLE_KEY", "none")) as client:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        first = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=32, temperature=0, logprobs=True, top_logprobs=3
        )
        answer = first.choices[0].message.content
        print(f"{messages[0]['content']} {answer}")
        assert first.choices[0].logprobs is not None
        for token in (first.choices[0].logprobs.content or [])[:3]:
            others = ", ".join(f"{other.token!r} {other.logprob:.2f}" for other in token.top_logprobs)
            print(f"  {token.token!r}: {others}")
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Thank you!"}]
        second = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=32, temperature=0)
        print(f"Thank you! {second.choices[0].message.content}")
        assert second.usage is not None
        print(f"{second.usage.prompt_tokens} prompt tokens, {second.usage.completion_tokens} generated")


if __name__ == "__main__":
    main()
