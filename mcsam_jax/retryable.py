"""Which faults another start doesn't meet: a lost host, a store that didn't answer. The command line leaves with 75."""

import errno
import re
import sys

from mcsam_jax.errors import UserError

# How JAX, its coordinator, gloo and TPU's network tell that a collective's other side is gone.
LOST_HOST = re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|Gloo|heartbeat|launch group|"
                       r"[Cc]onnection (reset|closed|refused)|[Cc]oordination service|peer")
# How TensorStore, below Orbax, tells that a bucket didn't answer however often it asked: a ValueError with this text.
SILENT_STORE = re.compile(r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): ")
# How Google's Python libraries tell it.
SILENT_GOOGLE = ("ServiceUnavailable", "InternalServerError", "BadGateway", "GatewayTimeout", "TooManyRequests", "RetryError",
                 "TransportError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "ChunkedEncodingError")


class OtherHostFailed(Exception):
  """Another host isn't there, or told that it met a fault that passes."""


def is_retryable(error: BaseException) -> bool:
  """Tells whether another start may not meet an error: it, or what it was raised from, is of a kind that passes.

  Of what a UserError was raised from nothing is asked: who raised that has looked at it and wants the user's help.
  """
  while error is not None and not isinstance(error, UserError):
    if _passes(error):
      return True
    error = error.__cause__                  # clu's AsyncError of a log on a bucket, for one, has the store's in it
  return False


def _passes(error: BaseException) -> bool:
  if isinstance(error, OtherHostFailed):
    return True
  module, name = type(error).__module__, type(error).__name__
  if module.startswith(("google.api_core", "google.auth", "requests.")):     # of Orbax's questions about a bucket
    return name in SILENT_GOOGLE
  if isinstance(error, OSError):
    return isinstance(error, (ConnectionError, TimeoutError)) or error.errno in (errno.ESTALE, errno.EREMOTEIO)
  if module.startswith("tensorflow.python.framework.errors"):
    return name in ("UnavailableError", "DeadlineExceededError", "AbortedError")
  if type(error) is ValueError:
    return bool(SILENT_STORE.match(str(error)))
  jax = sys.modules.get("jax")
  many = jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
  return many and isinstance(error, jax.errors.JaxRuntimeError) and bool(LOST_HOST.search(str(error)))
