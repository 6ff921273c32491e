#!/usr/bin/env bash
# Checks style and types.
#   bash launch/lint.sh          ruff check and pyright, as pyproject.toml configures them
# Creates .venv and installs both tools and the package on the first run.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
install test,dev
ruff check .
pyright
