#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one slice or several, and restarts automatically after a preemption or a lost host.
#   bash launch/tpu_vm.sh [--dry-run] [--yes] VERB ...
#     run train --config mimic_cxr --workdir gs://BUCKET/runs/mimic --config.data.data_dir=gs://BUCKET/data \
#       --config.encoder.weights=gs://BUCKET/data/resnet50.npz       any mcsam arguments; creates the TPU if needed
#     status                                                         shows the TPU and its nodes
#     stop                                                           saves and ends the run; the TPU stays
#     down                                                           deletes the TPU, which costs until then
# The run continues on the TPU if this terminal closes; `run` with the same arguments attaches to it again. A preempted
# TPU is replaced only while this script runs: use a machine that stays up. Exits with mcsam's status, 0 after `stop`.
# Needs gcloud, logged in, and `ssh-add ~/.ssh/google_compute_engine`. Copies the files that git tracks, with local
# changes but no data, to ~/mcsam-jax on each worker. Relative paths are below ~/mcsam-run, deleted with the TPU.
# Settings (environment variables): NAME, ZONE, TYPE (v5litepod-16, v6e-256, v4-2048, ...), SLICES, SPOT=1,
# DOWN=1 (delete the TPU at the end), CACHE (compiled programs, no data; default: mcsam-xla next to a workdir on
# gs://; only worker 0 writes to it, so a folder on the TPU doesn't serve the others), MAX_RESTARTS, RUNTIME, POLL
# (seconds), PUBLIC_DATA=1 (the data set is open, buckets may be public), MCSAM_PRIVATE_BUCKETS (passed on to mcsam).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/cloud.sh
NAME=${NAME:-mcsam} ZONE=${ZONE:-us-west4-a} TYPE=${TYPE:-v5litepod-16} SLICES=${SLICES:-1} POLL=${POLL:-30} failed=0
case $TYPE in   # https://cloud.google.com/tpu/docs/runtimes
  v6e-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} ;; v5p-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5} ;;
  v5lite*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} ;; *) RUNTIME=${RUNTIME:-tpu-ubuntu2204-base} ;;
esac
parse_options "$@"
require gcloud "see https://cloud.google.com/sdk/docs/install, or preview the commands with --dry-run"
tpus() { run gcloud compute tpus "$@" "--zone=$ZONE"; }
# gcloud's default batches of 64 hosts would block forever on a program that spans more hosts.
on_all_workers() { tpus queued-resources "$@" --node=all --worker=all --batch-size=all; }
requests() { tpus queued-resources list "--filter=name~(^|/)$NAME\$" "$@"; }
nodes() {   # several slices are NAME-0, NAME-1, ...; with one slice, such a name belongs to another TPU
  local number='(-[0-9]+)?'
  case $VERB:$SLICES in run:1) number='' ;; run:*) number='-[0-9]+' ;; esac
  tpus tpu-vm list "--filter=name~(^|/)$NAME$number\$" "$@"
}
delete() { tpus queued-resources delete "$NAME" --force --quiet; }
create() {
  local count="--node-id=$NAME"
  [ "$SLICES" = 1 ] || count="--node-count=$SLICES"
  tpus queued-resources create "$NAME" "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" "$count" ${SPOT:+--spot}
}

ensure_ready() {   # returns once every node is ready; a preempted TPU is deleted and created again
  local state
  while {
    state=$(requests '--format=value(state.state)') && state+=" $(nodes '--format=value(state)' | sort -u | xargs)"
  } 3>/dev/null || die "can't list the TPUs in $ZONE: is gcloud logged in?"; do
    case $state in
      *PREEMPTED* | *TERMINATED* | SUSPEND*) echo "$NAME was preempted: creating it again"; delete || sleep "$POLL" ;;
      FAILED*) die "creation failed; see \`gcloud compute tpus queued-resources describe $NAME --zone=$ZONE\`" ;;
      ' ') create ;;
      'ACTIVE READY') return ;;
      *) echo "$(date +%T) $NAME: $state"; sleep "$POLL" ;;
    esac
  done
}

attempt() {   # installs, then starts mcsam or attaches to it; returns 75 for 'run again'
  local log statuses command status=0
  command="${CACHE:+JAX_COMPILATION_CACHE_DIR=$(quote "$CACHE") }"
  command+="${MCSAM_PRIVATE_BUCKETS:+MCSAM_PRIVATE_BUCKETS=$(quote "$MCSAM_PRIVATE_BUCKETS") }"
  command+="bash tpu_worker.sh run mcsam $(quote "${ARGS[@]:1}")"
  if ! on_all_workers scp "$package" launch/tpu_worker.sh "$NAME:" ||
    ! on_all_workers ssh "$NAME" --command='bash tpu_worker.sh install'; then
    ((++failed < 3)) || die "installation on $NAME failed, see above; it costs until \`bash launch/tpu_vm.sh down\`"
    return 75
  fi
  failed=0 log=$(mktemp)
  on_all_workers ssh "$NAME" --command="$command" 2>&1 | tee "$log" || status=$?
  statuses=$(grep -o 'exited with status [0-9]*' "$log" | sed 's/.* //' | xargs) || true   # gcloud returns only one
  [ "$status" = 0 ] || [ -n "$statuses" ] || statuses=75          # no worker reported a status: the connection was lost
  # shellcheck disable=SC2086  # split into words
  status=$(combine_statuses $status $statuses)
  # A worker may have exited with 75, like its neighbors, before `stop` reached it.
  [ "$status" != 75 ] || ! grep -q 'was stopped on request' "$log" || status=0
  rm "$log"
  return "$status"
}

case $VERB in
  status) requests; nodes ;;
  stop) confirm "End the run on $NAME?"; on_all_workers ssh "$NAME" --command='bash tpu_worker.sh stop' ;;
  down) confirm "Delete the TPU $NAME in $ZONE and all files on it?"; delete ;;
  run)
    [ "${#ARGS[@]}" -gt 1 ] || die "run needs mcsam arguments, such as: run train --config C --workdir gs://BUCKET/RUN"
    check_data_flags "${ARGS[@]:1}"
    CACHE=${CACHE:-$(default_cache "${ARGS[@]}")}
    check_buckets_private "$CACHE" "${ARGS[@]}"
    confirm "Use $SLICES x $TYPE${SPOT:+ (spot)} in $ZONE (created again when preempted; costs until deleted)?"
    package=$(mktemp -d)/mcsam-jax.tar.gz status=75
    trap 'rm -r "${package%/*}"' EXIT
    run bash -o pipefail -c 'git ls-files -z | tar -czf "$0" --null -T -' "$package" ||
      die "can't pack the tracked files: see above"
    if [ -n "$DRY_RUN" ]; then create; attempt; [ -z "${DOWN:-}" ] || delete; exit 0; fi
    trap 'echo "The run continues: attach with the same command, end it with \`$0 stop\` or \`$0 down\`"; exit 130' INT
    for ((starts = 0; starts <= ${MAX_RESTARTS:-100} && status == 75; starts++)); do
      [ "$starts" = 0 ] || { echo "$(date +%T) interrupted: trying again in $POLL seconds"; sleep "$POLL"; }
      ensure_ready
      attempt && status=0 || status=$?
    done
    if [ -n "${DOWN:-}" ]; then delete; else echo "$NAME costs until it is deleted: bash launch/tpu_vm.sh down"; fi
    exit "$status" ;;
  *) die "unknown verb '$VERB': expected run, status, stop or down; see --help" ;;
esac
