"""When a process joins others, and what a signal does to one that stands alone."""

import os
import signal

import pytest

from mcsam_jax.errors import Preempted, UserError
from mcsam_jax.training import hosts
from mcsam_jax.training.preemption import Stop

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
  assert hosts.cluster_settings(environ) == settings


def test_half_a_description_of_a_cluster_is_refused():
  with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES and JAX_PROCESS_ID"):
    hosts.cluster_settings({"JAX_COORDINATOR_ADDRESS": "host:1"})
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES=two"):
    hosts.cluster_settings({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"})


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_step_first_and_other_work_at_once(number, status):
  before, done = signal.getsignal(number), []
  with pytest.raises(Preempted) as raised, Stop() as stop:
    with stop.after_steps():
      for step in stop.between(range(5)):
        done.append(step)
        if step == 2:
          os.kill(os.getpid(), number)
          done.append("the rest of step 2")
  assert done == [0, 1, 2, "the rest of step 2"] and raised.value.status == status
  with pytest.raises(Preempted), Stop():
    os.kill(os.getpid(), number)
    done.append("never")
  assert "never" not in done and signal.getsignal(number) == before


def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_ends():
  with Stop() as stop, stop.after_steps():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted):
      stop.check()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
