#!/usr/bin/env bash
# Trains MCSAM to generate reports of synthetic chest X-rays, on two CPU cores or any accelerator that JAX finds.
#   bash launch/demo.sh [--workdir DIR] [--config.field=value ...]
# Creates .venv, installs the package and runs `mcsam demo`. Safe to run again: finished steps are skipped.
set -euo pipefail
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh
install import
# Large buffers in huge pages: a training step of this small model takes a sixth less time on a CPU (docs/benchmarks.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
exec mcsam demo "$@"
