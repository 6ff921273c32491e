# shellcheck shell=bash
# Sourced by tpu_vm.sh, gke.sh and slurm.sbatch: options, dry runs, questions, and buckets that must not be public.
#   options "$@"            takes --help, --dry-run and --yes off; what is left is ARGS, its first word VERB
#   run COMMAND...          prints the command and, unless --dry-run, runs it
#   ask QUESTION            goes on after a yes (--yes answers it); anything else leaves with nothing done
#   verdict STATUS...       one status for all hosts: 2 (put something right), 3 (does not fit) or 130 (Ctrl-C) if any
#                           left so; 75 (run again) if any left with 75 or was killed (128 and more); else the first
#   refuse_public WORD...   leaves with status 2 if everyone can read a bucket that the words name (gs://...), also in
#                           --flag=gs://...; PUBLIC_DATA=1 says that the data set is open and skips this
#   refuse_local WORD...    leaves with status 2 if `train` would look for records or weights below the folder that it
#                           starts in, where a new machine has none
#   beside_workdir WORD...  prints gs://.../mcsam-xla, beside a workdir on gs://: host 0 alone writes compiled programs
#   value_of FLAG WORD...   prints what the words say of --flag

exec 3>&1

die() { echo "$(basename "$0"): $1" >&2; exit 2; }

options() {
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
  # shellcheck disable=SC2034  # of the script that sources this
  VERB=${ARGS[0]:-}
}

quoted() {   # the words as a shell would take them again, quotes only where they are needed
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  echo "${line% }"
}

run() {
  echo "+ $(quoted "$@")" >&3               # so that $(run ...) holds the command's output alone
  [ -n "$DRY_RUN" ] || "$@"
}

need() { [ -n "$DRY_RUN" ] || command -v "$1" >/dev/null || die "$1 is missing: $2"; }

ask() {
  local answer=
  [ -z "$DRY_RUN$YES" ] || return 0
  read -r -p "$1 [y/N] " answer || echo
  [[ $answer =~ ^[yY] ]] || die "not confirmed, nothing was done (--yes answers yes)"
}

verdict() {
  local last=$1
  case " $* " in
    *' 2 '*) last=2 ;;
    *' 3 '*) last=3 ;;
    *' 130 '*) last=130 ;;
    *' 75 '* | *' 12'[89]' '* | *' 1'[3-9]?' '* | *' 2'[0-4]?' '* | *' 255 '*) last=75 ;;
  esac
  echo "$last"
}

refuse_public() {
  local bucket rights fix
  [ -z "${PUBLIC_DATA:-}" ] || return 0
  for bucket in $(printf '%s\n' "$@" | grep -o 'gs://[^/ ]*' | sort -u); do
    fix="gcloud storage buckets update $bucket --public-access-prevention"
    need gcloud "it tells whether $bucket is public (https://cloud.google.com/sdk); for open data set PUBLIC_DATA=1"
    rights=$(run gcloud storage buckets describe "$bucket" --format=json) ||
      die "can't read the settings of $bucket: create it, or ask its owner for storage.buckets.get"
    if grep -q '"public_access_prevention": "enforced"' <<<"$rights"; then continue; fi
    rights+=$(run gcloud storage buckets get-iam-policy "$bucket" --format=json) ||
      die "can't read who may read $bucket: ask its owner for storage.buckets.getIamPolicy, or for \`$fix\`"
    if grep -Eq 'allUsers|allAuthenticatedUsers' <<<"$rights"; then
      die "everyone can read $bucket, so no restricted data may go there: \`$fix\`; for open data set PUBLIC_DATA=1"
    fi
  done
}

value_of() {
  local flag=$1 word value='' next=
  for word in "${@:2}"; do
    if [ -n "$next" ]; then value=$word next=; fi
    case $word in "$flag") next=1 ;; "$flag="*) value=${word#*=} ;; esac
  done
  echo "$value"
}

beside_workdir() {
  local workdir
  workdir=$(value_of --workdir "$@")
  workdir=${workdir%/}
  [[ $workdir != gs://?*/?* ]] || echo "${workdir%/*}/mcsam-xla"
}

refuse_local() {
  local config field
  [ "${1:-}" = train ] || return 0
  config=$(value_of --config "$@")
  config=${config##*/}
  case ${config%.py} in mimic_cxr | iu_xray | r2gencmn) ;; *) return 0 ;; esac       # other files may say it themselves
  for field in data.data_dir=gs://BUCKET/data encoder.weights=gs://BUCKET/data/WEIGHTS.npz; do
    [[ " $* " = *" --config.${field%%=*}="* ]] ||
      die "the machines start without data: add --config.$field; \`gcloud storage cp -r data gs://BUCKET/\` brings it"
  done
}
