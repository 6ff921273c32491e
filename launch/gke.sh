#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that xpk made (`xpk cluster create`, `pip install xpk`).
#   bash launch/gke.sh [--dry-run] [--yes] VERB ...
#     build                                                          the image of launch/Dockerfile, pushed as IMAGE
#     run train --config mimic_cxr --workdir gs://BUCKET/runs/mimic --config.data.data_dir=gs://BUCKET/data \
#       --config.encoder.weights=gs://BUCKET/data/resnet50.npz       any words of mcsam, as a workload
#     status                                                         of the workload
#     down                                                           deletes the workload; the cluster stays, and costs
# GKE starts it again, up to MAX_RESTARTS times, when it left with status 75 or was killed or preempted; any other
# status (2: something to put right) ends it. Data and workdir are on gs://; the cluster's service account reads them.
# Settings, by environment: CLUSTER, IMAGE (such as us-docker.pkg.dev/PROJECT/REPOSITORY/mcsam), PROJECT, ZONE, NAME,
# TYPE (v5litepod-16, v6e-256, ...), SLICES, CACHE (compiled programs, no data; default: mcsam-xla beside a workdir on
# gs://. Host 0 alone writes it, and a folder of a pod goes with it), MAX_RESTARTS, GRACE (seconds from SIGTERM to the
# end; xpk takes up to 10 of them, a spot node gives less), PUBLIC_DATA=1 (the data set is open, buckets may be public),
# MCSAM_PRIVATE_BUCKETS (handed on).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/cloud.sh
NAME=${NAME:-mcsam} ZONE=${ZONE:-us-west4-a} TYPE=${TYPE:-v5litepod-16} SLICES=${SLICES:-1}
options "$@"
place() {
  local name
  for name in CLUSTER PROJECT; do [ -n "${!name:-}" ] || die "set $name, as in $name=my-${name,,} bash $0 $VERB"; done
  need xpk "pip install xpk, or look first with --dry-run"
  where=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")
}

case $VERB in
  build | run) [ -n "${IMAGE:-}" ] || die "set IMAGE, such as us-docker.pkg.dev/PROJECT/REPOSITORY/mcsam" ;;
esac
case $VERB in
  build)
    need docker "see https://docs.docker.com/engine/install, or look first with --dry-run"
    ask "Build the image and push it to $IMAGE, where storing it costs?"
    # As root: xpk's pods are privileged in any case, and a node's TPU devices may belong to root.
    run docker build --file launch/Dockerfile --target tpu --build-arg RUN_AS=0 --tag "$IMAGE" .
    run docker push "$IMAGE" ;;
  run)
    [ "${#ARGS[@]}" -gt 1 ] || die "say what to run: run train --config C --workdir gs://BUCKET/RUN"
    place
    refuse_local "${ARGS[@]:1}"
    CACHE=${CACHE:-$(beside_workdir "${ARGS[@]}")}
    refuse_public "$CACHE" "${ARGS[@]}"
    ask "Run on $SLICES x $TYPE of the cluster $CLUSTER, which costs while it runs?"
    # `exec`: xpk's shell passes SIGTERM on to its child, which has to be mcsam itself. xpk restarts on 42 and 127-255.
    run xpk workload create "--workload=$NAME" "${where[@]}" "--tpu-type=$TYPE" "--num-slices=$SLICES" \
      "--docker-image=$IMAGE" "--env=JAX_COMPILATION_CACHE_DIR=${CACHE:-/tmp/mcsam-xla}" \
      ${MCSAM_PRIVATE_BUCKETS:+"--env=MCSAM_PRIVATE_BUCKETS=$MCSAM_PRIVATE_BUCKETS"} \
      "--max-restarts=${MAX_RESTARTS:-100}" --restart-on-exit-codes=75 \
      "--termination-grace-period-seconds=${GRACE:-120}" "--command=exec mcsam $(quoted "${ARGS[@]:1}")"
    echo "next: bash $0 status; its output: kubectl logs -f -l xpk.google.com/workload=$NAME" ;;
  status) place; run xpk workload list "${where[@]}" "--filter-by-job=^$NAME\$" ;;
  down)
    place
    ask "Delete the workload $NAME of the cluster $CLUSTER?"
    run xpk workload delete "--workload=$NAME" "${where[@]}" ;;
  *) die "unknown verb '$VERB': build, run, status or down; --help tells more" ;;
esac
