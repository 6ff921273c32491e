#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster created with xpk (`pip install xpk`, `xpk cluster create`).
#   bash launch/gke.sh [--dry-run] [--yes] VERB ...
#     build                                                          builds and pushes IMAGE (launch/Dockerfile)
#     run train --config mimic_cxr --workdir gs://BUCKET/runs/mimic --config.data.data_dir=gs://BUCKET/data \
#       --config.encoder.weights=gs://BUCKET/data/resnet50.npz       runs mcsam with any arguments
#     status                                                         shows the workload
#     down                                                           deletes the workload; the cluster stays and costs
# GKE restarts the workload, up to MAX_RESTARTS times, if it exits with status 75, is killed or preempted; any other
# status (such as 2: fix the input) ends it. Data and workdir are on gs://; the cluster's service account reads them.
# Settings (environment variables): CLUSTER, IMAGE (such as us-docker.pkg.dev/PROJECT/REPOSITORY/mcsam), PROJECT, ZONE,
# NAME, TYPE (v5litepod-16, v6e-256, ...), SLICES, CACHE (compiled programs, no data; default: mcsam-xla next to a workdir
# on gs://. Only host 0 writes to it; a folder inside a pod is deleted with the pod), MAX_RESTARTS, GRACE (seconds between
# SIGTERM and SIGKILL; xpk uses up to 10 of them, a spot node allows less), PUBLIC_DATA=1 (the data set is open, buckets
# may be public), MCSAM_PRIVATE_BUCKETS (passed on to mcsam).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/cloud.sh
NAME=${NAME:-mcsam} ZONE=${ZONE:-us-west4-a} TYPE=${TYPE:-v5litepod-16} SLICES=${SLICES:-1}
parse_options "$@"
set_location() {
  local name
  for name in CLUSTER PROJECT; do [ -n "${!name:-}" ] || die "set $name, as in $name=my-${name,,} bash $0 $VERB"; done
  require xpk "pip install xpk, or preview the commands with --dry-run"
  location=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")
}

case $VERB in
  build | run) [ -n "${IMAGE:-}" ] || die "set IMAGE, such as us-docker.pkg.dev/PROJECT/REPOSITORY/mcsam" ;;
esac
case $VERB in
  build)
    require docker "see https://docs.docker.com/engine/install, or preview the commands with --dry-run"
    confirm "Build the image and push it to $IMAGE (storage costs)?"
    # As root: xpk's pods are privileged in any case, and a node's TPU devices may belong to root.
    run docker build --file launch/Dockerfile --target tpu --build-arg RUN_AS=0 --tag "$IMAGE" .
    run docker push "$IMAGE" ;;
  run)
    [ "${#ARGS[@]}" -gt 1 ] || die "run needs mcsam arguments, such as: run train --config C --workdir gs://BUCKET/RUN"
    set_location
    check_data_flags "${ARGS[@]:1}"
    CACHE=${CACHE:-$(default_cache "${ARGS[@]}")}
    check_buckets_private "$CACHE" "${ARGS[@]}"
    confirm "Run on $SLICES x $TYPE of the cluster $CLUSTER (costs while it runs)?"
    # `exec` because xpk's shell forwards SIGTERM only to its direct child. xpk itself restarts on 42 and 127-255.
    run xpk workload create "--workload=$NAME" "${location[@]}" "--tpu-type=$TYPE" "--num-slices=$SLICES" \
      "--docker-image=$IMAGE" "--env=JAX_COMPILATION_CACHE_DIR=${CACHE:-/tmp/mcsam-xla}" \
      ${MCSAM_PRIVATE_BUCKETS:+"--env=MCSAM_PRIVATE_BUCKETS=$MCSAM_PRIVATE_BUCKETS"} \
      "--max-restarts=${MAX_RESTARTS:-100}" --restart-on-exit-codes=75 \
      "--termination-grace-period-seconds=${GRACE:-120}" "--command=exec mcsam $(quote "${ARGS[@]:1}")"
    echo "next: bash $0 status; output: kubectl logs -f -l xpk.google.com/workload=$NAME" ;;
  status) set_location; run xpk workload list "${location[@]}" "--filter-by-job=^$NAME\$" ;;
  down)
    set_location
    confirm "Delete the workload $NAME on the cluster $CLUSTER?"
    run xpk workload delete "--workload=$NAME" "${location[@]}" ;;
  *) die "unknown verb '$VERB': expected build, run, status or down; see --help" ;;
esac
