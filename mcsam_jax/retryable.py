"""Classifies errors as retryable (lost host, unavailable storage); the command line exits with status 75 for those."""

import errno
import re
import sys

from mcsam_jax.errors import UserError

# How JAX, its coordination service, gloo and the TPU network report that a peer of a collective is gone.
LOST_HOST = re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|Gloo|heartbeat|launch group|"
                       r"[Cc]onnection (reset|closed|refused)|[Cc]oordination service|peer")
# How TensorStore, which Orbax uses, reports a bucket that didn't answer after all retries: a ValueError with this text.
UNAVAILABLE_STORAGE = re.compile(r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): ")
# How Google's Python libraries and requests report it.
UNAVAILABLE_SERVICE = ("ServiceUnavailable", "InternalServerError", "BadGateway", "GatewayTimeout", "TooManyRequests",
                       "RetryError", "TransportError", "ConnectionError", "ConnectTimeout", "ReadTimeout",
                       "ChunkedEncodingError")


class OtherHostFailed(Exception):
  """Another host is missing, or failed with a retryable error."""


def is_retryable(error: BaseException | None) -> bool:
  """Returns whether the same command may succeed at another start.

  An error is retryable if it, or one that it was raised from, is of a retryable kind. The cause of a `UserError` is
  ignored: the code that raised it has already decided that the user has to act.
  """
  while error is not None and not isinstance(error, UserError):
    if _is_retryable_kind(error):
      return True
    error = error.__cause__                # for example, clu's AsyncError hides the storage error of a log on a bucket
  return False


def _is_retryable_kind(error: BaseException) -> bool:
  if isinstance(error, OtherHostFailed):
    return True
  module, name = type(error).__module__, type(error).__name__
  if module.startswith(("google.api_core", "google.auth", "requests.")):     # Orbax asks Cloud Storage about buckets
    return name in UNAVAILABLE_SERVICE
  if isinstance(error, OSError):
    return isinstance(error, (ConnectionError, TimeoutError)) or error.errno in (errno.ESTALE, errno.EREMOTEIO)
  if module.startswith("tensorflow.python.framework.errors"):
    return name in ("UnavailableError", "DeadlineExceededError", "AbortedError")
  if type(error) is ValueError:
    return bool(UNAVAILABLE_STORAGE.match(str(error)))
  jax = sys.modules.get("jax")                                               # not imported only for this question
  if jax is None or not jax.distributed.is_initialized() or jax.process_count() == 1:
    return False
  return isinstance(error, jax.errors.JaxRuntimeError) and bool(LOST_HOST.search(str(error)))
