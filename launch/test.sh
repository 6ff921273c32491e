#!/usr/bin/env bash
# Runs the tests.
#   bash launch/test.sh [pytest arguments]     e.g. tests/input_pipeline, or -n 0 -s -m slow for the slow tests
# Creates .venv, installs the package with the test dependencies and runs pytest with one process per core, at most 4
# (-n 0: one process); a test file isn't split over processes. METEOR's tests are skipped without Java.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
install test
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
