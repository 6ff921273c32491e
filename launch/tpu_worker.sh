# shellcheck shell=bash disable=SC2329  # called by name
# tpu_vm.sh copies this script to every worker of a TPU and runs it there.
#   bash tpu_worker.sh install             unpacks ~/mcsam-jax.tar.gz to ~/mcsam-jax and installs it in ~/mcsam-env
#   bash tpu_worker.sh run mcsam ARG...    starts a run, or attaches to it if it is already running; returns its status
#   bash tpu_worker.sh stop                sends SIGTERM to the run, which saves and exits; attached terminals report it
# A run is detached from the ssh connection, because gcloud repeats a command whose connection broke. Its working
# directory is ~/mcsam-run, which is kept when ~/mcsam-jax is unpacked again.

install() {
  flock -n ~/mcsam.lock true || { echo "a run is in progress: its installation is kept"; return 0; }
  rm -rf ~/mcsam-jax && mkdir ~/mcsam-jax && tar -xzf ~/mcsam-jax.tar.gz -C ~/mcsam-jax && cd ~/mcsam-jax || return
  # uv installs its own Python, because the image's may be 3.10.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user -c launch/constraints.txt uv || return
  [ -x ~/mcsam-env/bin/python ] || ~/.local/bin/uv venv --quiet --python 3.11 ~/mcsam-env || return
  ~/.local/bin/uv pip install --quiet --python ~/mcsam-env -c launch/constraints.txt -e '.[tpu,import]' || return
  command -v java >/dev/null || sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y default-jre-headless \
    >/dev/null || echo "Java can't be installed: METEOR will be null"
}

run() {
  local status
  mkdir -p ~/mcsam-run && ln -sfn ~/mcsam-jax/configs ~/mcsam-run/configs && cd ~/mcsam-run || return
  export PATH=~/mcsam-env/bin:$PATH JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/mcsam-xla}
  exec 9>~/mcsam.lock
  if flock -n 9; then                                          # the run inherits the lock and holds it until it exits
    rm -f ~/mcsam.status ~/mcsam.stop
    echo "$*" >~/mcsam.command
    # shellcheck disable=SC2016  # expands in the new shell
    setsid bash -c 'echo $$ >~/mcsam.pid; "$@"; echo $? >~/mcsam.status' - "$@" </dev/null >>~/mcsam.log 2>&1 &
  elif [ "$*" != "$(cat ~/mcsam.command)" ]; then
    echo "another run is in progress here: $(cat ~/mcsam.command)"
    echo "$(hostname) exited with status 2"
    return 2
  fi
  exec 9>&-
  tail --pid=$$ -n 20 -F ~/mcsam.log 2>/dev/null &
  flock ~/mcsam.lock sleep 0.5                                 # waits for the run to exit, and for the last log lines
  kill $!
  status=$(cat ~/mcsam.status 2>/dev/null || echo 137)         # no status file: killed
  if [ -e ~/mcsam.stop ] && [ "$status" -ge 75 ]; then         # don't run it again
    echo "$(hostname) was stopped on request"
    status=0
  fi
  echo "$(hostname) exited with status $status"
  return "$status"
}

stop() {
  if flock -n ~/mcsam.lock true; then echo "no run is in progress here"; return; fi
  touch ~/mcsam.stop
  pkill -TERM -P "$(cat ~/mcsam.pid)" || echo "the run has already exited"
}

"$@"; exit                                                     # bash has read the file by now: scp may replace it
