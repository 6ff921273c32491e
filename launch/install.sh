# Sourced by demo.sh, lint.sh and test.sh: creates .venv in the checkout and installs the package into it.
#   install EXTRA    activates .venv; installs only if pyproject.toml or the pinned versions have changed
# PYTHON is the interpreter (default python3); it must be 3.11 or newer.

install() {
  local extra=$1 python=${PYTHON:-python3} stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "$python is missing or older than Python 3.11: install it, or set PYTHON to its path" >&2
    exit 1
  fi
  stamp=".venv/installed-$extra-$(cat pyproject.toml launch/constraints.txt launch/install.sh | cksum | cut -d ' ' -f 1)"
  if [ ! -e "$stamp" ]; then
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
      echo "Creating a virtual environment in .venv"
      "$python" -m venv .venv                         # completes one whose creation was interrupted
    fi
    echo "Installing mcsam-jax[$extra] and its dependencies; takes about a minute the first time"
    install_packages -c launch/constraints.txt -e ".[$extra]"
    touch "$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
}

# Installs into .venv with uv, which is several times as fast as pip, or with pip where uv isn't to be had or fails.
install_packages() {
  local pip=(.venv/bin/python -m pip --disable-pip-version-check) options=() settings=() status=0
  # Files of an interrupted installation may look complete.
  if [ -e .venv/unfinished ]; then options=(--force-reinstall); fi
  touch .venv/unfinished
  # Where Python may not write bytecode, each process would compile all that it imports. pip always compiles.
  if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then settings=(UV_COMPILE_BYTECODE=1); fi
  if read_pip_settings < <("${pip[@]}" config list) && { [ -x .venv/bin/uv ] ||
      "${pip[@]}" install --quiet -c launch/constraints.txt --only-binary uv uv 2>/dev/null; }; then
    env "${settings[@]}" .venv/bin/uv pip install --quiet --python .venv/bin/python "${options[@]}" "$@" || status=$?
    if [ "$status" -ge 128 ]; then exit "$status"; fi                                  # Ctrl-C
    if [ "$status" -ne 0 ]; then echo "uv failed with status $status; trying pip"; fi
  else
    status=1
  fi
  if [ "$status" -ne 0 ]; then "${pip[@]}" install --quiet "${options[@]}" "$@"; fi
  rm .venv/unfinished
}

# Adds to `settings` the variables that give uv the settings of pip, which it doesn't read by itself.
#   read_pip_settings < <(pip config list)      fails if a setting has no counterpart
read_pip_settings() {
  local line name value default_index="" indexes="" links="" constraints="" hosts=""
  settings+=(UV_INDEX_STRATEGY=unsafe-best-match)             # like pip: the best version of all indexes
  while IFS= read -r line; do
    name=${line%%=*} value=${line#*=\'} value=${value%\'} value=${value//\\n/ }
    case $name in global.* | install.* | :env:.*) ;; *) continue ;; esac              # others are of other commands
    case ${name##*.} in
      index-url)
        if [ -n "$default_index" ] && [ "$default_index" != "$value" ]; then return 1; fi
        default_index=$value ;;
      extra-index-url) indexes+=" $value" ;;
      find-links) links+=" $value" ;;
      constraint) constraints+=" $value" ;;
      trusted-host) hosts+=" $value" ;;
      cert) settings+=("SSL_CERT_FILE=$value") ;;
      timeout | default-timeout) settings+=("UV_HTTP_TIMEOUT=$value") ;;
      cache-dir | disable-pip-version-check | no-cache-dir | no-color | no-input | progress-bar | quiet | \
        require-virtualenv | retries | root-user-action | verbose) ;;
      *) return 1 ;;
    esac
  done
  if [ -n "$default_index" ]; then settings+=("UV_DEFAULT_INDEX=$default_index"); fi
  if [ -n "$indexes" ]; then settings+=("UV_INDEX=${indexes# }"); fi
  if [ -n "$constraints" ]; then settings+=("UV_CONSTRAINT=${constraints# }"); fi
  if [ -n "$hosts" ]; then settings+=("UV_INSECURE_HOST=${hosts# }"); fi
  links=${links# }
  if [ -n "$links" ]; then settings+=("UV_FIND_LINKS=${links// /,}"); fi
}
