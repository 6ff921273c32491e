"""When a process joins a cluster, how errors of host 0 reach the others, and what signals do."""

import os
import re
import signal

import jax
import pytest
import tensorflow as tf

from mcsam_jax.distributed import multihost
from mcsam_jax.distributed.preemption import PreemptionGuard
from mcsam_jax.errors import Preempted, UserError
from mcsam_jax.retryable import is_retryable, OtherHostFailed

SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize("environ, settings", [
    ({}, None),
    ({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
     {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1}),
    (SRUN | {"SLURM_NTASKS": "2"}, {}),
    (SRUN | {"SLURM_NTASKS": "2", "JAX_COORDINATOR_ADDRESS": "host:1"}, {}),
    (SRUN | {"SLURM_NTASKS": "1"}, None),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),                    # the batch script, outside srun
    ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, {}),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None)])                      # a pod outside an indexed job
def test_only_processes_of_a_cluster_are_initialized(environ, settings):
  assert multihost.cluster_settings(environ) == settings


def test_an_incomplete_cluster_environment_is_refused():
  with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS.* without JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
    multihost.cluster_settings({"JAX_COORDINATOR_ADDRESS": "host:1"})
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES=two"):
    multihost.cluster_settings({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"})


@pytest.mark.parametrize("has_package", [True, False])
def test_a_pod_of_an_indexed_job_does_not_train_alone_if_a_package_is_missing(has_package, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: has_package if name == "kubernetes" else None)
  pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
  if has_package:
    assert multihost.cluster_settings(pod) == {}
  else:
    with pytest.raises(UserError, match="k8s.*unset JOB_COMPLETION_INDEX"):
      multihost.cluster_settings(pod)
  address = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
  assert multihost.cluster_settings(pod | address)["num_processes"] == 2


@pytest.mark.parametrize("error, retryable", [
    (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Failed to connect to the coordination service"), True),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses"), True),
    (RuntimeError("Failed to recognize coordinator address t1v-n-w-0"), True),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Address already in use"), False),
    (jax.errors.JaxRuntimeError("UNKNOWN: Failed to start RPC server"), False),
    (RuntimeError("Kubernetes API Error: 403 - Forbidden"), False),
    (ValueError("process_id and num_processes must be nonnegative"), False)])
def test_late_hosts_are_retryable_and_wrong_settings_are_user_errors(error, retryable, monkeypatch):
  def initialize(**settings):
    assert settings["process_id"] == 1 and settings["initialization_timeout"] > 300
    raise error

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(jax.config, "update", lambda name, value: None)       # this process stays as it is
  with pytest.raises(OtherHostFailed if retryable else UserError, match=re.escape(str(error))):
    multihost.initialize({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})


@pytest.mark.parametrize("error, error_of_others, status", [
    (tf.errors.UnavailableError(None, None, "gs://bucket/x: 503"), OtherHostFailed, 75),
    (UserError("no such file"), UserError, 2), (KeyError("x"), UserError, 2),
    (Preempted(signal.SIGTERM), Preempted, 75), (Preempted(signal.SIGINT), Preempted, 130)])
def test_a_failure_of_host_0_ends_the_others_with_the_same_status(error, error_of_others, status, monkeypatch):
  broadcasts = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost.ocp.multihost, "get_barrier_sync_fn", lambda: lambda key, timeout_ms: None)

  def work():
    raise error

  monkeypatch.setattr(jax, "process_index", lambda: 0)
  monkeypatch.setattr(multihost.multihost_utils, "broadcast_one_to_all",
                      lambda value: broadcasts.append(value) or value)
  with pytest.raises(type(error)):
    multihost.run_on_host0(work)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(multihost.multihost_utils, "broadcast_one_to_all", lambda value: broadcasts[0])
  with pytest.raises(error_of_others) as raised:
    multihost.run_on_host0(work)
  assert (75 if is_retryable(raised.value) else raised.value.status) == status


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_lets_a_step_finish_and_stops_other_work_at_once(number, status):
  previous_handler, done = signal.getsignal(number), []
  with pytest.raises(Preempted) as raised, PreemptionGuard() as guard:
    with guard.deferred():
      for step in guard.check_before_each(range(5)):
        done.append(step)
        if step == 2:
          os.kill(os.getpid(), number)
          done.append("the rest of step 2")
  assert done == [0, 1, 2, "the rest of step 2"] and raised.value.status == status
  with pytest.raises(Preempted), PreemptionGuard():
    os.kill(os.getpid(), number)
    done.append("never")
  assert "never" not in done and signal.getsignal(number) == previous_handler


def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_ends_the_process():
  with PreemptionGuard() as guard, guard.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted):
      guard.check()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
