# shellcheck shell=bash disable=SC2329  # called by name
# What tpu_vm.sh runs on every worker of a TPU; it copies this file there.
#   bash tpu_worker.sh install              ~/mcsam-jax.tar.gz -> ~/mcsam-jax and ~/mcsam-env
#   bash tpu_worker.sh run mcsam WORDS...   starts a run, or follows it if it goes on here; returns its status
#   bash tpu_worker.sh stop                 SIGTERM to it: it saves and leaves, and whoever follows it is told so
# A run is a process of its own, apart from the ssh connection: gcloud gives a command again when its connection broke.
# It works in ~/mcsam-run, which stays when ~/mcsam-jax is unpacked anew.

install() {
  flock -n ~/mcsam.lock true || { echo "a run is going on: its installation is left as it is"; return 0; }
  rm -rf ~/mcsam-jax && mkdir ~/mcsam-jax && tar -xzf ~/mcsam-jax.tar.gz -C ~/mcsam-jax && cd ~/mcsam-jax || return
  # uv brings a Python, as the image's own may be 3.10.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user -c launch/constraints.txt uv || return
  [ -x ~/mcsam-env/bin/python ] || ~/.local/bin/uv venv --quiet --python 3.11 ~/mcsam-env || return
  ~/.local/bin/uv pip install --quiet --python ~/mcsam-env -c launch/constraints.txt -e '.[tpu,import]' || return
  command -v java >/dev/null || sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y default-jre-headless \
    >/dev/null || echo "no Java: METEOR will be null"
}

run() {
  local status
  mkdir -p ~/mcsam-run && ln -sfn ~/mcsam-jax/configs ~/mcsam-run/configs && cd ~/mcsam-run || return
  export PATH=~/mcsam-env/bin:$PATH JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/mcsam-xla}
  exec 9>~/mcsam.lock
  if flock -n 9; then                                          # the run inherits the lock and holds it while it lives
    rm -f ~/mcsam.status ~/mcsam.stop
    echo "$*" >~/mcsam.words
    # shellcheck disable=SC2016  # expands in the new shell
    setsid bash -c 'echo $$ >~/mcsam.pid; "$@"; echo $? >~/mcsam.status' - "$@" </dev/null >>~/mcsam.log 2>&1 &
  elif [ "$*" != "$(cat ~/mcsam.words)" ]; then
    echo "another run is going on here: $(cat ~/mcsam.words)"
    echo "$(hostname) left with status 2"
    return 2
  fi
  exec 9>&-
  tail --pid=$$ -n 20 -F ~/mcsam.log 2>/dev/null &
  flock ~/mcsam.lock sleep 0.5                                 # its end, and time for the last lines
  kill $!
  status=$(cat ~/mcsam.status 2>/dev/null || echo 137)         # none was written: killed
  if [ -e ~/mcsam.stop ] && [ "$status" -ge 75 ]; then         # it isn't to be run again
    echo "$(hostname) was stopped as asked"
    status=0
  fi
  echo "$(hostname) left with status $status"
  return "$status"
}

stop() {
  if flock -n ~/mcsam.lock true; then echo "no run is going on here"; return; fi
  touch ~/mcsam.stop
  pkill -TERM -P "$(cat ~/mcsam.pid)" || echo "it has ended already"
}

"$@"; exit                                                     # read whole before it runs: scp may replace this file
