"""When a process joins others, and what a signal does to one that stands alone."""

import os
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
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),                    # the batch script itself, without srun
    ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, {}),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None)])                      # a pod that is no member of a job
def test_a_process_joins_others_exactly_where_there_are_some(environ, settings):
  assert multihost.cluster_settings(environ) == settings


def test_half_a_description_of_a_cluster_is_refused():
  with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
    multihost.cluster_settings({"JAX_COORDINATOR_ADDRESS": "host:1"})
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES=two"):
    multihost.cluster_settings({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"})


@pytest.mark.parametrize("found", [True, False])
def test_a_pod_of_an_indexed_job_does_not_train_alone_for_want_of_a_package(found, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: found if name == "kubernetes" else None)
  pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
  if found:
    assert multihost.cluster_settings(pod) == {}
  else:
    with pytest.raises(UserError, match="k8s.*unset JOB_COMPLETION_INDEX"):
      multihost.cluster_settings(pod)
  address = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
  assert multihost.cluster_settings(pod | address)["num_processes"] == 2


@pytest.mark.parametrize("error, passes", [
    (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Failed to connect to the coordination service"), True),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses"), True),
    (RuntimeError("Failed to recognize coordinator address t1v-n-w-0"), True),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Address already in use"), False),
    (jax.errors.JaxRuntimeError("UNKNOWN: Failed to start RPC server"), False),
    (RuntimeError("Kubernetes API Error: 403 - Forbidden"), False),
    (ValueError("process_id and num_processes must be nonnegative"), False)])
def test_late_hosts_are_started_again_and_wrong_words_are_the_user_s(error, passes, monkeypatch):
  def initialize(**settings):
    assert settings["process_id"] == 1 and settings["initialization_timeout"] > 300
    raise error

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(jax.config, "update", lambda name, value: None)       # of this process, which goes on
  with pytest.raises(OtherHostFailed if passes else UserError, match="the hosts .*(can't be joined|weren't all)"):
    multihost.initialize({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})


@pytest.mark.parametrize("error, of_others, status", [
    (tf.errors.UnavailableError(None, None, "gs://bucket/x: 503"), OtherHostFailed, 75),
    (UserError("no such file"), UserError, 2), (KeyError("x"), UserError, 2),
    (Preempted(signal.SIGTERM), Preempted, 75), (Preempted(signal.SIGINT), Preempted, 130)])
def test_what_ends_host_0_ends_the_others_with_a_status_that_goes_with_it(error, of_others, status, monkeypatch):
  told = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost.ocp.multihost, "get_barrier_sync_fn", lambda: lambda key, timeout_ms: None)

  def work():
    raise error

  monkeypatch.setattr(jax, "process_index", lambda: 0)
  monkeypatch.setattr(multihost.multihost_utils, "broadcast_one_to_all", lambda value: told.append(value) or value)
  with pytest.raises(type(error)):
    multihost.run_on_host0(work)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(multihost.multihost_utils, "broadcast_one_to_all", lambda value: told[0])
  with pytest.raises(of_others) as raised:
    multihost.run_on_host0(work)
  assert (75 if is_retryable(raised.value) else raised.value.status) == status


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_step_first_and_other_work_at_once(number, status):
  before, done = signal.getsignal(number), []
  with pytest.raises(Preempted) as raised, PreemptionGuard() as stop:
    with stop.deferred():
      for step in stop.check_before_each(range(5)):
        done.append(step)
        if step == 2:
          os.kill(os.getpid(), number)
          done.append("the rest of step 2")
  assert done == [0, 1, 2, "the rest of step 2"] and raised.value.status == status
  with pytest.raises(Preempted), PreemptionGuard():
    os.kill(os.getpid(), number)
    done.append("never")
  assert "never" not in done and signal.getsignal(number) == before


def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_ends():
  with PreemptionGuard() as stop, stop.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted):
      stop.check()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
