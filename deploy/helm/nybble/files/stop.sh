#!/bin/sh
# preStop of a leader: after SECONDS, in which the address goes out of use, lets the service drain and waits.
set -eu

sleep "$1"
id=$(cat "${NYBBLE_LAUNCH_FOLDER:-/tmp/launch}/serving.pid")
kill -TERM "$id"
while kill -0 "$id" 2>/dev/null; do
  sleep 1
done
