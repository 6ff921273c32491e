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
    [ -x .venv/bin/python ] || { echo "Creating a virtual environment in .venv"; "$python" -m venv .venv; }
    echo "Installing mcsam-jax[$extra] and its dependencies; takes about a minute the first time"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e ".[$extra]"
    touch "$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
}
