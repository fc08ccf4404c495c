"""The chart's test: ready, closed to strangers when keys are set, and an answer when they are not."""

import json
import os
import urllib.error
import urllib.request


def ask(url, body=None):
    """Status and text of one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def expect(status, url, body=None):
    """Ends the test unless the answer has the status."""
    found, text = ask(url, body)
    print(found, url, text[:200])
    if found != status:
        raise SystemExit(f"{url}: status {found}, expected {status}")


api, chat = os.environ["API_URL"], {"role": "user", "content": "Hello"}
expect(200, os.environ["HEALTH_URL"] + "/health/ready")
expected = 401 if os.environ["KEYS_REQUIRED"] == "yes" else 200
expect(expected, api + "/v1/models")
body = {"model": os.environ["MODEL"], "messages": [chat], "max_tokens": 4}
expect(expected, api + "/v1/chat/completions", body)
