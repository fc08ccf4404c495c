"""An answer held to a JSON Schema: whatever the model would like to say, it parses."""

from __future__ import annotations

import json
import os

import openai

URL = os.environ.get("NYBBLE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("NYBBLE_MODEL", "nybble-demo")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def main() -> None:
    """Print the object as Python sees it."""
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("NYBBLE_KEY", "none")) as client:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Extract name and age as JSON: Emma is 31 years old."}],
            max_tokens=64,
            temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
        )
        person = json.loads(answer.choices[0].message.content or "")
        print(f"name {person['name']}, age {person['age']}")


if __name__ == "__main__":
    main()
