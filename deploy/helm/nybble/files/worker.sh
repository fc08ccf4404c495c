#!/bin/sh
# In a worker: an sshd of this user's, with a key of its own, which lets in the group's key only.
set -eu

umask 077
keys=${NYBBLE_SSH_KEYS:-/etc/nybble/ssh}
work=${NYBBLE_LAUNCH_FOLDER:-/tmp/launch}
mkdir -p "$work"
cp "$keys/id_ed25519.pub" "$work/authorized_keys"
[ -f "$work/host_key" ] || ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
exec "${NYBBLE_SSHD:-/usr/sbin/sshd}" -D -e -p "${NYBBLE_SSH_PORT:-2222}" -f /dev/null \
  -o HostKey="$work/host_key" -o AuthorizedKeysFile="$work/authorized_keys" -o PidFile=none -o StrictModes=no \
  -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=no -o UsePAM=no \
  -o "SetEnv=PATH=$PATH LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"
