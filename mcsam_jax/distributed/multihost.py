"""Many hosts that run one program: when to join them, and what only one of them does.

A host is a process. On a cluster every one of them runs the same command and walks the same steps; host 0 alone
prints, writes logs and makes files, while the others wait and then read them. A single machine needs nothing of
this, and everything here is then a plain call.
"""

from collections.abc import Callable, Mapping
import contextlib
import glob
import importlib.util
import itertools
import json
import os
import re
import signal
import socket

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from mcsam_jax.errors import Preempted, UserError
from mcsam_jax.retryable import is_retryable, OtherHostFailed

JOIN_SECONDS = 900           # that hosts wait for one another at the start: some fetch their image or install longer
HEARTBEAT_SECONDS = 100      # a host that wasn't heard of for so long is dead, and ends the others
SHUTDOWN_SECONDS = 60        # that a host waits for the others when it leaves
FOREVER_MS = 7 * 24 * 3600 * 1000
_FAILED, _PASSES = -1, -2    # of host 0, as the others are told; the number of the signal if it was asked to stop
_barriers = itertools.count()


def initialize(environ: Mapping[str, str] = os.environ) -> None:
  """Joins the cluster that this process was started on, if it was; before anything else asks for devices.

  Raises:
    UserError: the environment tells half of what is needed, or the first host's port is taken.
    OtherHostFailed: the other hosts aren't there, or one was lost meanwhile.
  """
  settings = cluster_settings(environ)
  if settings is None or jax.distributed.is_initialized():
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")     # used on CPU alone
  # JAX's own notice of SIGTERM takes the signal from Python, and is told of training steps only; see preemption.py.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                               shutdown_timeout_seconds=SHUTDOWN_SECONDS, **settings)
  except ValueError as error:
    if "should be defined" in str(error) or "must be defined" in str(error):      # a TPU machine that stands alone
      return
    raise UserError(f"the hosts can't be joined: {error}") from error
  except RuntimeError as error:
    raise _not_joined(error, settings.get("coordinator_address", "the first host")) from error


def _not_joined(error: RuntimeError, address: str) -> Exception:
  """Returns what to raise where JAX found no way to the other hosts: late ones are there at another start.

  Here are those whose address isn't known yet. Where it is and nobody answers, JAX ends the process by itself, with a
  status (134) that launchers start again as well.
  """
  told = " ".join(str(error).split())[:200]
  nobody = re.search("DEADLINE_EXCEEDED|UNAVAILABLE|ABORTED|CANCELLED|Failed to recognize coordinator", told)
  if (nobody and "in use" not in told) or isinstance(error.__cause__, socket.gaierror):    # of a pod without an address
    return OtherHostFailed(f"the hosts at {address} weren't all there in time: are all of them started? ({told})")
  return UserError(f"the hosts at {address} can't be joined: are all of them started, and is its port free? ({told})")


def cluster_settings(environ: Mapping[str, str]) -> dict | None:
  """Returns the arguments of `jax.distributed.initialize` that its own detection doesn't find; None: stands alone.

  JAX finds its way under SLURM, Open MPI 4, on TPU pods (Compute Engine, GKE with xpk) and in indexed Kubernetes
  jobs, but raises where there is no cluster (jax/_src/clusters). So it is asked only where one of these is.

  Raises:
    UserError: JAX_COORDINATOR_ADDRESS without the number of hosts, or the like; the package that finds the pods of a
      Kubernetes job is missing.
  """
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  address, count, index = (environ.get(name) for name in names)
  if count is not None and index is not None and address is not None:
    try:
      return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    except ValueError as error:
      raise UserError(f"JAX_NUM_PROCESSES={count}, JAX_PROCESS_ID={index}: both must be whole numbers") from error
  slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")      # set for the tasks of srun
  if all(name in environ for name in slurm) and int(environ.get("SLURM_NTASKS", "1")) > 1:
    return {}
  if "OMPI_MCA_orte_hnp_uri" in environ and int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return {}
  indexed = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ and address is None
  if has_tpu(environ) or indexed and importlib.util.find_spec("kubernetes"):
    return {}
  if indexed:
    raise UserError("this is a pod of an indexed Kubernetes job, and without the package kubernetes it can't find the "
                    "others: pip install -e '.[k8s]', or unset JOB_COMPLETION_INDEX if every pod is to work alone")
  given = [name for name, value in zip(names, (address, count, index)) if value is not None]
  if given:
    missing = [name for name in names if name not in given]
    raise UserError(f"{' and '.join(given)} without {' and '.join(missing)}: set all three for a host of a cluster, "
                    "or none for a machine that stands alone")
  return None


def has_tpu(environ: Mapping[str, str]) -> bool:
  """Tells whether this machine is a worker of Cloud TPU and may use it."""
  platforms = environ.get("JAX_PLATFORMS", "tpu")
  chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
  return "tpu" in platforms and bool(chips) and importlib.util.find_spec("libtpu") is not None


def log_on_host0(log: Callable[[str], None]) -> Callable[[str], None]:
  """Returns `log` on host 0, and on the others one that shows nothing."""
  return log if jax.process_index() == 0 else lambda line: None


def run_on_host0(work: Callable, within: Callable = contextlib.nullcontext):
  """Returns work() on host 0; the others wait until it is done, and return None.

  Args:
    within: gives the context that host 0 works in; `PreemptionGuard.immediate` for work that takes long.

  Raises:
    whatever `work` raises on host 0; on the others Preempted where that was the reason, OtherHostFailed where another
      start may not meet it (see passing.py), UserError otherwise.
  """
  if jax.process_count() == 1:
    with within():
      return work()
  result, failure, reason = None, None, 0
  if jax.process_index() == 0:
    try:
      with within():
        result = work()
    except Preempted as error:
      failure, reason = error, int(error.signal)
    except BaseException as error:                 # told to the others, who would wait for ever, then raised
      failure, reason = error, _PASSES if is_retryable(error) else _FAILED
  barrier()
  reason = int(multihost_utils.broadcast_one_to_all(np.int32(reason)))
  if failure is not None:
    raise failure
  if reason == _FAILED:
    raise UserError("host 0 has failed, its message says why")
  if reason == _PASSES:
    raise OtherHostFailed("host 0 has failed, its message says why")
  if reason:
    raise Preempted(signal.Signals(reason))
  return result


def barrier() -> None:
  """Waits until all hosts are here, for as long as it takes: collectives have a time limit on CPU, and work may last hours."""
  if jax.process_count() > 1:
    ocp.multihost.get_barrier_sync_fn()(key=f"meet_{next(_barriers)}", timeout_ms=FOREVER_MS)


def host0_then_others(work: Callable, within: Callable = contextlib.nullcontext):
  """Returns work() of each host; host 0 is done with it, and with the files that it makes, before the others begin."""
  result = run_on_host0(work, within)
  return result if jax.process_index() == 0 else work()


def broadcast_from_host0(value):
  """Returns what host 0 gives, on all hosts: of files, say, that each sees at its own time. `value` fits into JSON."""
  if jax.process_count() == 1:
    return value
  text = json.dumps(value).encode() if jax.process_index() == 0 else b""
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  letters = np.frombuffer(text.ljust(length), np.uint8) if jax.process_index() == 0 else np.zeros(length, np.uint8)
  return json.loads(bytes(multihost_utils.broadcast_one_to_all(letters).astype(np.uint8)))


def all_reduce_min(number: int) -> int:
  """Returns the least of the numbers that the hosts give."""
  if jax.process_count() == 1:
    return number
  return int(np.min(multihost_utils.process_allgather(np.int32(number))))
