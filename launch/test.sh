#!/usr/bin/env bash
# Runs the tests.
#   bash launch/test.sh [pytest arguments]     e.g. tests/input_pipeline, or -n 0 -s -m slow for the long ones
# Makes .venv, installs with what tests need, runs pytest: a process a core, 4 at most, each with whole files of tests
# (-n 0: one process). METEOR's tests need Java and say so without it.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
install test
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
