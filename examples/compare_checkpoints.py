"""Is a 4-bit checkpoint as good as its source? Perplexity and divergence on a text.

    python examples/compare_checkpoints.py SOURCE QUANTISED TEXT

What `nybble compare --json` prints, as a program can act on it: exit status 1 when they are too far apart.
"""

from __future__ import annotations

import json
import subprocess
import sys

MAX_KL = 0.5


def main(source: str, quantised: str, text: str) -> int:
    """0 when the two are near enough."""
    command = ["nybble", "compare", source, quantised, "--text", text, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(done.stdout)
    for side in ("a", "b"):
        print(f"{report[side]['directory']}: perplexity {report[side]['perplexity']:.3f}")
    print(f"mean divergence {report['mean_kl']:.4f} nats, same first choice {report['agreement']:.1%}")
    return 0 if report["mean_kl"] <= MAX_KL else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
