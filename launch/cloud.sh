# shellcheck shell=bash
# Sourced by tpu_vm.sh, gke.sh and slurm.sbatch: options, dry runs, confirmation, and checks of buckets and data.
#   parse_options "$@"             handles --help, --dry-run and --yes; the rest is in ARGS, its first word in VERB
#   run COMMAND...                 prints the command and, unless --dry-run, runs it
#   confirm QUESTION               continues after "y" (or --yes); any other answer exits and nothing is done
#   combine_statuses STATUS...     prints one exit status for all hosts: 2 (fix the input), 3 (does not fit) or 130
#                                  (Ctrl-C) if any host has it; 75 (run again) if any host exited with 75 or was killed
#                                  (128 and above); otherwise the first
#   check_buckets_private ARG...   exits with status 2 if a bucket in the arguments (gs://..., --flag=gs://...) is
#                                  publicly readable; PUBLIC_DATA=1 skips this check for open data sets
#   check_data_flags ARG...        exits with status 2 if `train` would read records or weights from a local folder,
#                                  which doesn't exist on a new machine
#   default_cache ARG...           prints gs://.../mcsam-xla, next to a workdir on gs://; only host 0 writes to it
#   flag_value FLAG ARG...         prints the value of FLAG in the arguments

exec 3>&1

die() { echo "$(basename "$0"): $1" >&2; exit 2; }

parse_options() {
  DRY_RUN=${DRY_RUN:-} YES=${YES:-} ARGS=()
  local word
  for word in "$@"; do
    case $word in
      --help | -h) sed -n '2,/^set /{/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
      --dry-run) DRY_RUN=1 ;;
      --yes) YES=1 ;;
      *) ARGS+=("$word") ;;
    esac
  done
  # shellcheck disable=SC2034  # used by the script that sources this
  VERB=${ARGS[0]:-}
}

quote() {   # prints the arguments quoted for a shell, with quotes only where needed
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  echo "${line% }"
}

run() {
  echo "+ $(quote "$@")" >&3               # file descriptor 3, so that $(run ...) captures only the command's output
  [ -n "$DRY_RUN" ] || "$@"
}

require() { [ -n "$DRY_RUN" ] || command -v "$1" >/dev/null || die "$1 is missing: $2"; }

confirm() {
  local answer=
  [ -z "$DRY_RUN$YES" ] || return 0
  read -r -p "$1 [y/N] " answer || echo
  [[ $answer =~ ^[yY] ]] || die "not confirmed, nothing was done (--yes skips the question)"
}

combine_statuses() {
  local last=$1
  case " $* " in
    *' 2 '*) last=2 ;;
    *' 3 '*) last=3 ;;
    *' 130 '*) last=130 ;;
    *' 75 '* | *' 12'[89]' '* | *' 1'[3-9]?' '* | *' 2'[0-4]?' '* | *' 255 '*) last=75 ;;
  esac
  echo "$last"
}

check_buckets_private() {
  local bucket rights fix
  [ -z "${PUBLIC_DATA:-}" ] || return 0
  for bucket in $(printf '%s\n' "$@" | grep -o 'gs://[^/ ]*' | sort -u); do
    fix="gcloud storage buckets update $bucket --public-access-prevention"
    require gcloud "needed to check the access to $bucket (https://cloud.google.com/sdk); open data sets: PUBLIC_DATA=1"
    rights=$(run gcloud storage buckets describe "$bucket" --format=json) ||
      die "can't read the settings of $bucket: create it, or ask its owner for the permission storage.buckets.get"
    if grep -q '"public_access_prevention": "enforced"' <<<"$rights"; then continue; fi
    rights+=$(run gcloud storage buckets get-iam-policy "$bucket" --format=json) ||
      die "can't read the policy of $bucket: ask its owner for storage.buckets.getIamPolicy, or to run \`$fix\`"
    if grep -Eq 'allUsers|allAuthenticatedUsers' <<<"$rights"; then
      die "$bucket is publicly readable, unfit for restricted data: run \`$fix\`; open data sets: set PUBLIC_DATA=1"
    fi
  done
}

flag_value() {
  local flag=$1 word value='' next=
  for word in "${@:2}"; do
    if [ -n "$next" ]; then value=$word next=; fi
    case $word in "$flag") next=1 ;; "$flag="*) value=${word#*=} ;; esac
  done
  echo "$value"
}

default_cache() {
  local workdir
  workdir=$(flag_value --workdir "$@")
  workdir=${workdir%/}
  [[ $workdir != gs://?*/?* ]] || echo "${workdir%/*}/mcsam-xla"
}

check_data_flags() {
  local config field
  [ "${1:-}" = train ] || return 0
  config=$(flag_value --config "$@")
  config=${config##*/}
  case ${config%.py} in mimic_cxr | iu_xray | r2gencmn) ;; *) return 0 ;; esac       # others may set these fields
  for field in data.data_dir=gs://BUCKET/data encoder.weights=gs://BUCKET/data/WEIGHTS.npz; do
    [[ " $* " = *" --config.${field%%=*}="* ]] ||
      die "new machines have no data: add --config.$field; \`gcloud storage cp -r data gs://BUCKET/\` uploads it"
  done
}
