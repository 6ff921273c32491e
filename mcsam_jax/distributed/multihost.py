"""Several hosts that run one program: joining them, and work that only host 0 does.

A host is a process. On a cluster every host runs the same command and takes the same steps; host 0 alone prints,
writes logs and creates files, while the others wait and then read them. On a single machine every function here is a
plain call.
"""

from collections.abc import Callable, Mapping
import contextlib
import glob
import importlib.util
import itertools
import json
import os
import re
import socket
from typing import Any, cast, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from mcsam_jax.errors import Preempted, UserError
from mcsam_jax.retryable import is_retryable, OtherHostFailed

INITIALIZATION_SECONDS = 900 # time that hosts wait for one another at the start; some pull an image or install longer
HEARTBEAT_SECONDS = 100      # a host that is silent for this long counts as dead, which ends the others
SHUTDOWN_SECONDS = 60        # time that a host waits for the others when it exits
BARRIER_TIMEOUT_MS = 7 * 24 * 3600 * 1000
# How host 0's work ended, as broadcast to the others: 0, one of these, or the number of the signal that stopped it.
_FAILED, _FAILED_RETRYABLE = -1, -2
_barrier_numbers = itertools.count()
_T = TypeVar("_T")


def initialize(environ: Mapping[str, str] = os.environ) -> None:
  """Joins the cluster that this process was started on, if any; to be called before anything uses devices.

  Raises:
    UserError: the environment describes a cluster only in part, or the coordinator's port is in use.
    OtherHostFailed: the other hosts didn't start in time, or one was lost meanwhile.
  """
  settings = cluster_settings(environ)
  if settings is None or jax.distributed.is_initialized():
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")     # has no effect on other platforms
  # JAX's own preemption service would take SIGTERM away from Python; see preemption.py.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(initialization_timeout=INITIALIZATION_SECONDS,
                               heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS,
                               **settings)
  except ValueError as error:
    if "should be defined" in str(error) or "must be defined" in str(error):      # a single TPU machine
      return
    raise UserError(f"can't connect the hosts: {error}") from error
  except RuntimeError as error:
    raise _classify_initialization_error(error, settings.get("coordinator_address", "the coordinator")) from error


def _classify_initialization_error(error: RuntimeError, address: str) -> Exception:
  """Returns what to raise when JAX couldn't connect the hosts: late hosts may be there at the next start.

  This covers hosts whose address isn't known yet. If the address is known and nothing answers, JAX ends the process
  itself, with a status (134) after which launchers run the command again, too.
  """
  message = " ".join(str(error).split())[:200]
  is_missing = re.search("DEADLINE_EXCEEDED|UNAVAILABLE|ABORTED|CANCELLED|Failed to recognize coordinator", message)
  has_no_address = isinstance(error.__cause__, socket.gaierror)       # the pod doesn't have one yet
  if (is_missing and "in use" not in message) or has_no_address:
    return OtherHostFailed(f"the hosts at {address} didn't all start in time: check that all were started ({message})")
  return UserError(f"can't connect the hosts at {address}: check that all were started, and that the port is free "
                   f"({message})")


def cluster_settings(environ: Mapping[str, str]) -> dict[str, Any] | None:
  """Returns the arguments of `jax.distributed.initialize` that JAX can't detect itself; None on a single machine.

  JAX detects SLURM, Open MPI 4, TPU pods (Compute Engine, and GKE with xpk) and indexed Kubernetes jobs, but raises
  where there is no cluster (jax/_src/clusters). So its detection is used only where one of these is present.

  Raises:
    UserError: only some of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, or not to numbers;
      the package that finds the pods of a Kubernetes job is missing.
  """
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  address, count, index = (environ.get(name) for name in names)
  if count is not None and index is not None and address is not None:
    try:
      return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    except ValueError as error:
      raise UserError(f"JAX_NUM_PROCESSES={count}, JAX_PROCESS_ID={index}: both must be integers") from error
  slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")      # set for the tasks of srun
  if all(name in environ for name in slurm) and int(environ.get("SLURM_NTASKS", "1")) > 1:
    return {}
  if "OMPI_MCA_orte_hnp_uri" in environ and int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return {}
  is_indexed_job = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ and address is None
  if has_tpu(environ) or is_indexed_job and importlib.util.find_spec("kubernetes"):
    return {}
  if is_indexed_job:
    raise UserError("this pod belongs to an indexed Kubernetes job, but can't find the other pods without the package "
                    "kubernetes: pip install -e '.[k8s]', or unset JOB_COMPLETION_INDEX if every pod is to work alone")
  given = [name for name, value in zip(names, (address, count, index)) if value is not None]
  if given:
    missing = [name for name in names if name not in given]
    raise UserError(f"{' and '.join(given)} set without {' and '.join(missing)}: set all three on each host of a "
                    "cluster, or none on a single machine")
  return None


def has_tpu(environ: Mapping[str, str]) -> bool:
  """Returns whether this machine is a Cloud TPU worker and JAX may use its chips."""
  platforms = environ.get("JAX_PLATFORMS", "tpu")
  chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
  return "tpu" in platforms and bool(chips) and importlib.util.find_spec("libtpu") is not None


def log_on_host0(log: Callable[[str], None]) -> Callable[[str], None]:
  """Returns `log` on host 0, and a function that logs nothing on the others."""
  return log if jax.process_index() == 0 else lambda line: None


def run_on_host0(work: Callable[[], _T],
                 context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext) -> _T | None:
  """Returns work() on host 0; the other hosts wait until it has returned, and return None.

  Args:
    work: the function that host 0 calls.
    context: makes the context manager around work(): `PreemptionGuard.immediate` for long work.

  Raises:
    Exception: on host 0, whatever `work` raises. On the others, `Preempted` if a signal stopped host 0,
      `OtherHostFailed` if its error is retryable (see retryable.py), and `UserError` otherwise.
  """
  if jax.process_count() == 1:
    with context():
      return work()
  result, failure, outcome = None, None, 0
  if jax.process_index() == 0:
    try:
      with context():
        result = work()
    except Preempted as error:
      failure, outcome = error, int(error.signal)
    except BaseException as error:                 # raised below; without the broadcast the others would wait forever
      failure, outcome = error, _FAILED_RETRYABLE if is_retryable(error) else _FAILED
  barrier()
  outcome = int(multihost_utils.broadcast_one_to_all(np.int32(outcome)))
  if failure is not None:
    raise failure
  if outcome == _FAILED:
    raise UserError("host 0 has failed; see its message")
  if outcome == _FAILED_RETRYABLE:
    raise OtherHostFailed("host 0 has failed; see its message")
  if outcome:
    raise Preempted(outcome)
  return result


def barrier() -> None:
  """Waits until all hosts call it, however long that takes.

  Collectives would time out on CPU, and the work of one host may take hours.
  """
  if jax.process_count() > 1:
    ocp.multihost.get_barrier_sync_fn()(key=f"barrier_{next(_barrier_numbers)}", timeout_ms=BARRIER_TIMEOUT_MS)


def host0_then_others(work: Callable[[], _T],
                      context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext) -> _T:
  """Returns work() on every host; the others start when host 0, and the files it creates, are complete."""
  result = run_on_host0(work, context)
  return cast(_T, result) if jax.process_index() == 0 else work()


def broadcast_from_host0(value):
  """Returns host 0's `value`, which JSON can represent, on all hosts.

  Hosts may see files of a shared file system at different times, so decisions that depend on files are broadcast.
  """
  if jax.process_count() == 1:
    return value
  text = json.dumps(value).encode() if jax.process_index() == 0 else b""
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  buffer = np.frombuffer(text.ljust(length), np.uint8) if jax.process_index() == 0 else np.zeros(length, np.uint8)
  return json.loads(bytes(multihost_utils.broadcast_one_to_all(buffer).astype(np.uint8)))


def all_reduce_min(number: int) -> int:
  """Returns the smallest of the numbers that the hosts pass."""
  if jax.process_count() == 1:
    return number
  return int(np.min(multihost_utils.process_allgather(np.int32(number))))
