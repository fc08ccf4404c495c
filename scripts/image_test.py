"""Build the image `cpu` and run it, on a Debian machine without Docker: `make image-test` (root, 5 minutes).

buildah builds it in chroot isolation. The base image that the Dockerfile names is not pulled but made here,
with debootstrap, and given its name. The result is run as a container would be: its own process, mount and
network namespaces, a read-only root, the image's user, no network but the loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMAGE = "localhost/nybble:cpu"
MAX_BYTES = 500_000_000
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0

# What the official image has besides a minimal Debian: Python with pip, its headers, no documentation.
_MAKE_BASE = """
set -e
apt-get update -qq
apt-get install -qq --yes --no-install-recommends python3 python3-pip python3-venv
cd /tmp; apt-get download -qq "lib$(readlink /usr/bin/python3)-dev"; dpkg -x lib*-dev_*.deb dev
cp -r dev/usr/include/. /usr/include; rm -rf dev lib*-dev_*.deb; apt-get clean
rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man /usr/share/locale
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
ln -sf /usr/bin/python3 /usr/local/bin/python3; ln -sf /usr/bin/python3 /usr/local/bin/python
"""

# PID 1 of the container; the mounts are gone with the namespace.
_RUN = """
set -e
mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"; mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"
ip link set lo up
root=$1; shift
exec chroot --userspec=10001:10001 "$root" /usr/bin/env -i "$@"
"""


class Buildah:
    """buildah with a store of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._prefix = ["buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str, show: bool = False) -> str:
        """Standard output of one command; raises CalledProcessError."""
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(
            [*self._prefix, *arguments],
            check=True,
            text=True,
            env=environment,
            stdout=None if show else subprocess.PIPE,
        )
        return (done.stdout or "").strip()

    def has(self, image: str) -> bool:
        """Whether the store holds the image."""
        return image in self("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()


def base_image_name() -> str:
    """The Dockerfile's PYTHON_IMAGE."""
    (name,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return str(name)


def make_base(buildah: Buildah, folder: Path, mirror: str) -> None:
    """A stand-in for the official Python image, of the same Debian release."""
    name = base_image_name()
    if buildah.has(name):
        return
    rootfs, suite = folder / "rootfs", name.rpartition("-")[2]
    shutil.rmtree(rootfs, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(rootfs), mirror],
        check=True,
    )
    (rootfs / "etc/resolv.conf").unlink(missing_ok=True)
    shutil.copy("/etc/resolv.conf", rootfs / "etc/resolv.conf")
    subprocess.run(["chroot", str(rootfs), "sh", "-c", _MAKE_BASE], check=True)
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, str(rootfs), "/")
    path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah("config", "--env", f"PATH={path}", "--cmd", "python3", container)
    buildah("commit", "--quiet", "--rm", container, name)


def build_image(buildah: Buildah, folder: Path) -> None:
    """`docker build --target cpu`, with what is committed and this machine's certificates."""
    context = Path(tempfile.mkdtemp(dir=folder, prefix="context-"))
    archive = folder / "source.tar"
    subprocess.run(["git", "archive", "--output", str(archive), "HEAD"], cwd=ROOT, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(context, filter="data")
    pip_conf = folder / "pip.conf"
    pip_conf.write_text(f"[global]\ncert = {_CA_BUNDLE}\n")
    buildah(
        *(
            "bud",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--pull=never",
            "--target",
            "cpu",
            "-t",
            IMAGE,
        ),
        *("--secret", f"id=pip.conf,src={pip_conf}", "--volume", f"{_CA_BUNDLE}:{_CA_BUNDLE}:ro"),
        str(context),
        show=True,
    )
    shutil.rmtree(context)


def check(holds: bool, what: str) -> None:
    """Print one line of the result; end the run at the first that does not hold."""
    print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        sys.exit(1)


def check_contents(config: dict[str, Any], root: Path, num_bytes: int) -> None:
    """What the image is and what it holds."""
    check(num_bytes < MAX_BYTES, f"{num_bytes / 1e6:.0f} MB, less than {MAX_BYTES / 1e6:.0f}")
    check(config["User"] == "10001:10001", "runs as 10001:10001")
    check(config["StopSignal"] == "SIGTERM" and bool(config["Healthcheck"]), "stop signal and health check")
    check(config["Labels"]["org.opencontainers.image.title"] == "nybble", "OCI labels")
    site = next(iter((root / "opt/nybble/lib").glob("python3*/site-packages")))
    check(not (site / "torch").exists(), "no torch")
    bom = json.loads((root / "opt/nybble/sbom.cdx.json").read_text())
    listed = {component["name"].lower().replace("_", "-") for component in bom["components"]}
    installed = {
        folder.name.split("-")[0].lower().replace("_", "-").replace(".", "-")
        for folder in site.glob("*.dist-info")
    }
    check(
        installed - {"nybble"} <= {name.replace(".", "-") for name in listed},
        f"SBOM: {len(listed)} components",
    )
    check("libc6" in listed, "SBOM names the system's packages")
    leaks = [path for path in ("etc/pip.conf", "root/.config/pip/pip.conf", "src") if (root / path).exists()]
    check(not leaks, "no secret and no source tree left behind")
    writable = [
        p for p in (root / "opt/nybble").rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o022
    ]
    check(not writable, "the user can change nothing of the program")


def run_image(config: dict[str, Any], root: Path) -> None:
    """Start the image's own command without a network, ask the demo, stop it."""
    command = [*config["Env"], *config["Entrypoint"], *config["Cmd"]]
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork"]
    process = subprocess.Popen([*namespaces, "sh", "-c", _RUN, "sh", str(root), *command])
    try:
        init = _wait(lambda: _init_of(process.pid), "the container starts")
        inside = ["nsenter", "--target", str(init), "--net", "chroot", "--userspec=10001:10001", str(root)]

        def execute(*command: str) -> subprocess.CompletedProcess[str]:
            whole = [*inside, "/usr/bin/env", "-i", *config["Env"], *command]
            return subprocess.run(whole, check=False, capture_output=True, text=True)

        _wait(lambda: execute(*config["Healthcheck"]["Test"][1:]).returncode == 0, "the health check passes")
        devices = Path(f"/proc/{init}/net/dev").read_text().splitlines()[2:]
        check([line.split(":")[0].strip() for line in devices] == ["lo"], "there is no network")
        answer = execute("python", "-c", _ASK)
        check("Paris" in answer.stdout, f"answers: {answer.stdout.strip() or answer.stderr.strip()}")
        os.kill(init, 15)
        check(process.wait(timeout=_STOP_SECONDS) == 0, "SIGTERM ends it with status 0")
    finally:
        if process.poll() is None:
            process.kill()


_ASK = """
import json, urllib.request
body = {"model": "nybble-demo", "max_tokens": 16, "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]}
request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=30))["choices"][0]["message"]["content"])
"""


def _init_of(unshare_id: int) -> int:
    """The host's id of the namespace's first process, once that is the image's entry point; else 0."""
    children = Path(f"/proc/{unshare_id}/task/{unshare_id}/children").read_text().split()
    if not children or "tini" not in Path(f"/proc/{children[0]}/cmdline").read_text():
        return 0
    return int(children[0])


def _wait(condition: Callable[[], int | bool], what: str) -> int:
    """Poll until the condition holds."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if value := condition():
            check(True, what)
            return int(value)
        time.sleep(0.2)
    check(False, what)
    return 0


def debian_mirror() -> str:
    """Where this machine has Debian's own packages from."""
    listed = subprocess.check_output(["apt-get", "indextargets", "--format", "$(REPO_URI)"], text=True)
    mirrors = [line for line in listed.splitlines() if line.endswith("/debian/")]
    if not mirrors:
        sys.exit("image_test: this machine's sources name no mirror of Debian; give --mirror")
    return mirrors[0]


def main() -> None:
    """Build, look inside, run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/nybble-image-test"), help="for images and rootfs"
    )
    parser.add_argument("--mirror", help="of Debian, for debootstrap (default: the one this machine uses)")
    options = parser.parse_args()
    missing = [
        tool for tool in ("buildah", "debootstrap", "unshare", "nsenter", "ip") if not shutil.which(tool)
    ]
    if missing or os.geteuid():
        sys.exit(f"image_test: needs root and {', '.join(missing or ['nothing else'])} (apt-get install)")
    options.folder.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(options.folder)
    make_base(buildah, options.folder, options.mirror or debian_mirror())
    build_image(buildah, options.folder)
    details = json.loads(buildah("inspect", "--type", "image", IMAGE))
    config = details["Docker"]["config"]
    container = buildah("from", "--pull=never", IMAGE)
    try:
        root = Path(buildah("mount", container))
        num_bytes = int(subprocess.check_output(["du", "-sb", str(root)]).split()[0])
        check_contents(config, root, num_bytes)
        run_image(config, root)
    finally:
        buildah("rm", container)


if __name__ == "__main__":
    main()
