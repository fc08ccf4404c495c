"""What starts the ranks of a group of pods: run here with stand-ins for mpirun, ssh and nybble."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.shipping import CHART

SCRIPTS = CHART / "files"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """An environment in which the stand-ins write down how they were called."""
    said = f'printf "%s\\n" "$*" >> {tmp_path}'
    # The second worker is reached at the second attempt.
    second = f'case "$*" in *demo-2.*) mkdir {tmp_path}/tried 2>/dev/null && exit 255;; esac; exit 0'
    up_to_the_launcher = 'while [ "$1" != trtllm-llmapi-launch ]; do shift; done; shift; exec "$@"'
    stand_ins = {
        "ssh": f"{said}/ssh.log; {second}",
        "mpirun": f"{said}/mpirun.log; {up_to_the_launcher}",
        "nybble": f'{said}/nybble.log; trap "exit 0" TERM; while :; do sleep 0.1; done',
        "sleep": 'case "$1" in 2) exit 0;; esac; exec /bin/sleep "$1"',
    }
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in stand_ins.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "id_ed25519").write_text("private")
    (keys / "id_ed25519.pub").write_text("public")
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NYBBLE_SSH_KEYS": str(keys),
        "NYBBLE_LAUNCH_FOLDER": str(tmp_path / "launch"),
        "NYBBLE_GPUS_PER_NODE": "4",
        "NYBBLE_TENSOR_PARALLEL_SIZE": "4",
        "LWS_LEADER_ADDRESS": "demo-0.demo.llm",
        "LWS_GROUP_SIZE": "3",
    }


def test_leader_and_stop(machine: dict[str, str], tmp_path: Path) -> None:
    machine["LWS_LEADER_ADDRESS"] = "demo.svc.llm"
    leader = subprocess.Popen(["sh", SCRIPTS / "leader.sh", "serve", "/a folder"], env=machine)
    try:
        launch = tmp_path / "launch"
        deadline = 200
        while not (tmp_path / "nybble.log").exists() or not (launch / "serving.pid").exists():
            deadline -= 1
            assert deadline
            assert leader.poll() is None
            subprocess.run(["/bin/sleep", "0.05"], check=True)
        assert (launch / "hosts").read_text().splitlines() == [
            "localhost slots=4",
            "demo-1.svc.llm slots=4",
            "demo-2.svc.llm slots=4",
        ]
        assert stat.S_IMODE((launch / "id").stat().st_mode) == 0o600
        assert (tmp_path / "ssh.log").read_text().count("demo-2.svc.llm") == 2
        called = (tmp_path / "mpirun.log").read_text()
        assert called.startswith("-n 12 --hostfile")
        assert "-x NYBBLE_TENSOR_PARALLEL_SIZE" in called
        assert "-p 2222" in called
        assert (tmp_path / "nybble.log").read_text() == "serve /a folder\n"
        assert int((launch / "serving.pid").read_text()) == leader.pid
        stopped = subprocess.Popen(["sh", SCRIPTS / "stop.sh", "0"], env=machine)
        assert leader.wait(timeout=20) == 0
        assert stopped.wait(timeout=20) == 0
    finally:
        if leader.poll() is None:
            leader.send_signal(signal.SIGKILL)


def test_worker_lets_in_the_groups_key_only(machine: dict[str, str], tmp_path: Path) -> None:
    daemon = tmp_path / "bin/sshd"
    daemon.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/sshd.log\n')
    daemon.chmod(0o755)
    keygen = tmp_path / "bin/ssh-keygen"
    keygen.write_text('#!/bin/sh\nfor last; do :; done; echo key > "$last"\n')
    keygen.chmod(0o755)
    variables = {**machine, "NYBBLE_SSHD": str(daemon), "LD_LIBRARY_PATH": "/opt/lib"}
    subprocess.run(["sh", SCRIPTS / "worker.sh"], env=variables, check=True, timeout=20)
    options = (tmp_path / "sshd.log").read_text().splitlines()
    assert "2222" in options
    for option in ("PasswordAuthentication=no", "PermitRootLogin=no", "UsePAM=no"):
        assert option in options
    assert f"SetEnv=PATH={machine['PATH']} LD_LIBRARY_PATH=/opt/lib" in options
    authorized = tmp_path / "launch/authorized_keys"
    assert f"AuthorizedKeysFile={authorized}" in options
    assert authorized.read_text() == "public"
