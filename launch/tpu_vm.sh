#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one slice or several, and starts again by itself after a preemption or a lost host.
#   bash launch/tpu_vm.sh [--dry-run] [--yes] VERB ...
#     run train --config mimic_cxr --workdir gs://BUCKET/runs/mimic --config.data.data_dir=gs://BUCKET/data \
#       --config.encoder.weights=gs://BUCKET/data/resnet50.npz       any words of mcsam; makes the TPU if there is none
#     status                                                         of the TPU and its nodes
#     stop                                                           the run saves and ends; the TPU stays
#     down                                                           deletes the TPU; until then it costs
# The run lives on the TPU: when this terminal goes, `run` with the same words follows it again. To replace a preempted
# TPU this script must be running: give it a machine that stays up. It returns mcsam's own status, 0 after `stop`.
# Needs gcloud, logged in, and `ssh-add ~/.ssh/google_compute_engine`. Sends what git tracks, as it is now, to
# ~/mcsam-jax of each worker; no data. Relative paths are below ~/mcsam-run there, which goes with the TPU.
# Settings, by environment: NAME, ZONE, TYPE (v5litepod-16, v6e-256, v4-2048, ...), SLICES, SPOT=1, DOWN=1 (delete it at
# the end), CACHE (compiled programs, no data; default: mcsam-xla beside a workdir on gs://; worker 0 alone writes it,
# and in a folder of the TPU the others find none), MAX_RESTARTS, RUNTIME, POLL (seconds), PUBLIC_DATA=1 (the data set
# is open, buckets may be public), MCSAM_PRIVATE_BUCKETS (handed on).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/cloud.sh
NAME=${NAME:-mcsam} ZONE=${ZONE:-us-west4-a} TYPE=${TYPE:-v5litepod-16} SLICES=${SLICES:-1} POLL=${POLL:-30} failed=0
case $TYPE in   # https://cloud.google.com/tpu/docs/runtimes
  v6e-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} ;; v5p-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5} ;;
  v5lite*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} ;; *) RUNTIME=${RUNTIME:-tpu-ubuntu2204-base} ;;
esac
options "$@"
need gcloud "see https://cloud.google.com/sdk/docs/install, or look first with --dry-run"
tpus() { run gcloud compute tpus "$@" "--zone=$ZONE"; }
# All at once: gcloud's own 64 at a time would wait for ever on a program that spans more hosts than that.
everywhere() { tpus queued-resources "$@" --node=all --worker=all --batch-size=all; }
requests() { tpus queued-resources list "--filter=name~(^|/)$NAME\$" "$@"; }
nodes() {   # several slices are NAME-0, NAME-1, ...; where there is one, such a name is another TPU's
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

provide() {   # returns once every node is ready; what was preempted is deleted and made anew
  local state
  while {
    state=$(requests '--format=value(state.state)') && state+=" $(nodes '--format=value(state)' | sort -u | xargs)"
  } 3>/dev/null || die "can't see the TPUs of $ZONE: is gcloud logged in?"; do
    case $state in
      *PREEMPTED* | *TERMINATED* | SUSPEND*) echo "$NAME is preempted: making it anew"; delete || sleep "$POLL" ;;
      FAILED*) die "failed; \`gcloud compute tpus queued-resources describe $NAME --zone=$ZONE\` says why" ;;
      ' ') create ;;
      'ACTIVE READY') return ;;
      *) echo "$(date +%T) $NAME: $state"; sleep "$POLL" ;;
    esac
  done
}

attempt() {   # installs, and runs mcsam or follows it; returns 75 for 'run again'
  local log told words status=0
  words="${CACHE:+JAX_COMPILATION_CACHE_DIR=$(quoted "$CACHE") }"
  words+="${MCSAM_PRIVATE_BUCKETS:+MCSAM_PRIVATE_BUCKETS=$(quoted "$MCSAM_PRIVATE_BUCKETS") }"
  words+="bash tpu_worker.sh run mcsam $(quoted "${ARGS[@]:1}")"
  if ! everywhere scp "$package" launch/tpu_worker.sh "$NAME:" ||
    ! everywhere ssh "$NAME" --command='bash tpu_worker.sh install'; then
    ((++failed < 3)) || die "can't install on $NAME, see above; it costs until \`bash launch/tpu_vm.sh down\`"
    return 75
  fi
  failed=0 log=$(mktemp)
  everywhere ssh "$NAME" --command="$words" 2>&1 | tee "$log" || status=$?
  told=$(grep -o 'left with status [0-9]*' "$log" | sed 's/.* //' | xargs) || true   # gcloud's own is one worker's
  [ "$status" = 0 ] || [ -n "$told" ] || told=75                                    # nobody was heard: all are lost
  # shellcheck disable=SC2086  # a word each
  status=$(verdict $status $told)
  # A worker may have left with 75, as its neighbours did, before `stop` came to it.
  [ "$status" != 75 ] || ! grep -q 'was stopped as asked' "$log" || status=0
  rm "$log"
  return "$status"
}

case $VERB in
  status) requests; nodes ;;
  stop) ask "End the run on $NAME?"; everywhere ssh "$NAME" --command='bash tpu_worker.sh stop' ;;
  down) ask "Delete the TPU $NAME in $ZONE and all that is on it?"; delete ;;
  run)
    [ "${#ARGS[@]}" -gt 1 ] || die "say what to run: run train --config C --workdir gs://BUCKET/RUN"
    refuse_local "${ARGS[@]:1}"
    CACHE=${CACHE:-$(beside_workdir "${ARGS[@]}")}
    refuse_public "$CACHE" "${ARGS[@]}"
    ask "Use $SLICES x $TYPE${SPOT:+ (spot)} in $ZONE (made if need be, anew when preempted; costs until deleted)?"
    package=$(mktemp -d)/mcsam-jax.tar.gz status=75
    trap 'rm -r "${package%/*}"' EXIT
    run bash -o pipefail -c 'git ls-files -z | tar -czf "$0" --null -T -' "$package" || die "can't pack what git tracks: see above"
    if [ -n "$DRY_RUN" ]; then create; attempt; [ -z "${DOWN:-}" ] || delete; exit 0; fi
    trap 'echo "The run goes on: follow it with the same words, end it with \`$0 stop\` or \`$0 down\`"; exit 130' INT
    for ((starts = 0; starts <= ${MAX_RESTARTS:-100} && status == 75; starts++)); do
      [ "$starts" = 0 ] || { echo "$(date +%T) interrupted: again in $POLL seconds"; sleep "$POLL"; }
      provide
      attempt && status=0 || status=$?
    done
    if [ -n "${DOWN:-}" ]; then delete; else echo "$NAME costs until it is deleted: bash launch/tpu_vm.sh down"; fi
    exit "$status" ;;
  *) die "unknown verb '$VERB': run, status, stop or down; --help tells more" ;;
esac
