#!/usr/bin/env bash
# MCSAM learns to write reports of synthetic chest X-rays, on two CPU cores or whatever JAX finds.
#   bash launch/demo.sh [--workdir DIR] [--config.field=value ...]
# Makes .venv, installs, runs `mcsam demo`. Safe to run again: what is done is not done twice.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
install import
exec mcsam demo "$@"
