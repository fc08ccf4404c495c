"""Add the operating system's packages to a CycloneDX document: python system_packages_sbom.py SBOM.json"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def os_release() -> dict[str, str]:
    """/etc/os-release as a mapping."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines) if value}


def deb_components() -> list[dict[str, Any]]:
    """Every installed Debian package as a component with its package URL."""
    release = os_release()
    distribution = release.get("ID", "debian")
    release_name = f"{distribution}-{release.get('VERSION_ID', '')}"
    listing = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\t${Version}\t${Architecture}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    components = []
    for line in sorted(listing.splitlines()):
        name, version, architecture = line.split("\t")
        qualifiers = f"arch={architecture}&distro={release_name}"
        purl = f"pkg:deb/{distribution}/{name}@{quote(version, safe='')}?{qualifiers}"
        components.append(
            {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        )
    return components


def main(path: Path) -> None:
    """Rewrite the document at `path` with the packages of this system added."""
    document = json.loads(path.read_text(encoding="utf-8"))
    document.setdefault("components", []).extend(deb_components())
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
