#!/usr/bin/env bash
# Runs a command as N hosts on this machine: N processes that JAX joins to one cluster.
#   bash launch/local_hosts.sh [--dry-run] N COMMAND...     e.g. 2 mcsam train --config phantom --workdir runs/two
# DEVICES_PER_HOST   devices of each (default 1): simulated ones on CPU, the next so many on GPU
# JAX_PLATFORMS      cpu (default), cuda
# PORT               of the coordinator, on this machine (default: a random one)
# GRACE              seconds between SIGTERM and SIGKILL for those that are left when one has failed (default 10)
# SIGTERM and SIGINT go to all. Leaves with 0 if all did; with 75 (run again) if some did and the others left with 0;
# else with the status of the first that failed.
set -euo pipefail
case "${1:-}" in --help | -h) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
hosts=$1 devices=${DEVICES_PER_HOST:-1} port=${PORT:-$((20000 + RANDOM % 12000))}
shift
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

environment() {          # of host $1, as NAME=VALUE words
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
to_all() {               # sends signal $1 to each host's process group
  for id in "${!running[@]}"; do kill -s "$1" -- "-$id" 2>/dev/null || true; done
}
trap 'to_all TERM' TERM
trap 'to_all INT' INT
set -m                   # a process group for each: Ctrl-C reaches them once, through the trap
for ((host = 0; host < hosts; host++)); do
  # shellcheck disable=SC2046
  env $(environment "$host") "$@" &
  running[$!]=$host
done
set +m

worst=0
while [ ${#running[@]} -gt 0 ]; do
  sleep 0.2              # traps run between
  for id in "${!running[@]}"; do
    if kill -0 "$id" 2>/dev/null; then continue; fi
    host=${running[$id]} status=0
    wait "$id" || status=$?
    unset "running[$id]"
    if [ "$worst" -eq 0 ] || { [ "$worst" -eq 75 ] && [ "$status" -ne 0 ]; }; then worst=$status; fi
    if [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && [ ${#running[@]} -gt 0 ] && [ -z "${last_call:-}" ]; then
      echo "host $host left with status $status: ending the others" >&2
      to_all TERM
      last_call=$SECONDS
    fi
  done
  if [ -n "${last_call:-}" ] && [ $((SECONDS - last_call)) -ge "${GRACE:-10}" ]; then to_all KILL; fi
done
exit "$worst"
