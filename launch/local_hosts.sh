#!/usr/bin/env bash
# Runs a command as N hosts on this machine: N processes that form one JAX cluster.
#   bash launch/local_hosts.sh [--dry-run] N COMMAND...     e.g. 2 mcsam train --config phantom --workdir runs/two
# DEVICES_PER_HOST   devices of each host (default 1): simulated on CPU, consecutive local devices on GPU
# JAX_PLATFORMS      cpu (default) or cuda
# PORT               port of the coordinator on this machine (default: random)
# GRACE              seconds between SIGTERM and SIGKILL for the remaining hosts after one has failed (default 10)
# SIGTERM and SIGINT are forwarded to all hosts. Exits with 0 if all hosts did; with 75 (run again) if some exited with
# 75 and the others with 0; otherwise with the status of the first host that failed.
set -euo pipefail
case "${1:-}" in --help | -h) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
hosts=$1 devices=${DEVICES_PER_HOST:-1} port=${PORT:-$((20000 + RANDOM % 12000))}
shift
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

environment() {          # prints the variables of host $1 as NAME=VALUE words
  echo "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$hosts JAX_PROCESS_ID=$1"
  if [[ $JAX_PLATFORMS == *cpu* ]]; then
    echo "JAX_NUM_CPU_DEVICES=$devices"
  else
    echo "JAX_LOCAL_DEVICE_IDS=$(seq -s , $(($1 * devices)) $((($1 + 1) * devices - 1)))"
  fi
}

if [ -n "$dry_run" ]; then
  for ((host = 0; host < hosts; host++)); do echo "$(environment "$host" | xargs) $*"; done
  exit
fi

declare -A running=()    # process id -> host
signal_all() {           # sends signal $1 to each host's process group
  for id in "${!running[@]}"; do kill -s "$1" -- "-$id" 2>/dev/null || true; done
}
trap 'signal_all TERM' TERM
trap 'signal_all INT' INT
set -m                   # one process group per host, so that Ctrl-C reaches them only through the trap
for ((host = 0; host < hosts; host++)); do
  # shellcheck disable=SC2046
  env $(environment "$host") "$@" &
  running[$!]=$host
done
set +m

result=0
while [ ${#running[@]} -gt 0 ]; do
  sleep 0.2              # traps run between sleeps
  for id in "${!running[@]}"; do
    if kill -0 "$id" 2>/dev/null; then continue; fi
    host=${running[$id]} status=0
    wait "$id" || status=$?
    unset "running[$id]"
    if [ "$result" -eq 0 ] || { [ "$result" -eq 75 ] && [ "$status" -ne 0 ]; }; then result=$status; fi
    if [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && [ ${#running[@]} -gt 0 ] && [ -z "${stopping_since:-}" ]; then
      echo "host $host exited with status $status: stopping the others" >&2
      signal_all TERM
      stopping_since=$SECONDS
    fi
  done
  if [ -n "${stopping_since:-}" ] && [ $((SECONDS - stopping_since)) -ge "${GRACE:-10}" ]; then signal_all KILL; fi
done
exit "$result"
