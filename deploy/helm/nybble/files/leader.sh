#!/bin/sh
# In the leader of a group: waits for the workers' sshd, then starts one rank for each GPU; rank 0 serves.
# Arguments: those of `nybble`. LWS_LEADER_ADDRESS and LWS_GROUP_SIZE come from LeaderWorkerSet.
set -eu

umask 077
keys=${NYBBLE_SSH_KEYS:-/etc/nybble/ssh}
work=${NYBBLE_LAUNCH_FOLDER:-/tmp/launch}
mkdir -p "$work"
cp "$keys/id_ed25519" "$work/id"
ssh_options="-i $work/id -p 2222 -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=$work/known_hosts -o BatchMode=yes"

# Pods of a group: NAME is the leader, NAME-1, NAME-2, ... its workers, all under one domain.
leader=${LWS_LEADER_ADDRESS%%.*}
domain=${LWS_LEADER_ADDRESS#*.}
echo "localhost slots=$NYBBLE_GPUS_PER_NODE" > "$work/hosts"
worker=1
while [ "$worker" -lt "$LWS_GROUP_SIZE" ]; do
  host="$leader-$worker.$domain"
  echo "$host slots=$NYBBLE_GPUS_PER_NODE" >> "$work/hosts"
  # shellcheck disable=SC2086 # the options are words
  until ssh $ssh_options -o ConnectTimeout=5 "$host" true; do
    echo "waiting for $host" >&2
    sleep 2
  done
  worker=$((worker + 1))
done

# Ranks elsewhere see only what is exported to them.
exports=$(env | sed -n 's/^\(NYBBLE_[A-Z0-9_]*\|NCCL_[A-Z0-9_]*\|UCX_[A-Z0-9_]*\|PATH\|LD_LIBRARY_PATH\|HF_HUB_OFFLINE\)=.*/-x \1/p' | sort)

# The id of the process that serves, for stop.sh: mpirun would end its ranks without letting them drain.
# shellcheck disable=SC2016,SC2086
exec mpirun -n $((LWS_GROUP_SIZE * NYBBLE_GPUS_PER_NODE)) --hostfile "$work/hosts" --bind-to none \
  --mca plm_rsh_args "$ssh_options" --mca orte_keep_fqdn_hostnames 1 $exports \
  trtllm-llmapi-launch sh -c 'echo $$ > "$0"; exec nybble "$@"' "$work/serving.pid" "$@"
