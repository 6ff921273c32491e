"""Runs a verb and turns its exceptions into one line on stderr and an exit status."""

import argparse
import os
import re
import sys
import traceback

from mcsam_jax.errors import EXIT_RETRY, Preempted, printable, UserError
from mcsam_jax.retryable import is_retryable

MAX_MESSAGE = 10_000         # characters; an error may list a name per line of a foreign file


def run_verb(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs `args.run(args, overrides)` and returns the exit status; a failure is reported in one line on stderr."""
  def report(message: str) -> None:
    print(f"mcsam {args.verb}: {printable(message, MAX_MESSAGE)}", file=sys.stderr)

  try:
    args.run(args, overrides)
  except UserError as error:
    report(str(error))
    return error.status
  except Preempted as error:
    report(f"{error}; run the same command again")
    return error.status
  except BrokenPipeError:                           # `mcsam ... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except KeyboardInterrupt:
    return 130
  except Exception as error:
    if is_retryable(error):
      report(f"{one_line(error, 500)}; run the same command again")
      leave_other_hosts(EXIT_RETRY)
      return EXIT_RETRY
    if message := explain_library_error(error):
      report(message)
      return 2
    leave_other_hosts(1, traceback.format_exc())
    raise
  return 0


def explain_library_error(error: Exception) -> str | None:
  """Returns one line about an error of a library that the user can fix; None for any other, which is a bug."""
  module = type(error).__module__
  if module.startswith(("google.api_core", "google.auth")):
    hint = ("; the account needs the permission storage.buckets.get on the bucket, which "
            "roles/storage.legacyBucketReader grants" if type(error).__name__ == "Forbidden" else "")
    return one_line(error, 300) + hint
  if isinstance(error, OSError):
    return f"{error.filename or 'a file'}: {error.strerror or error}"
  if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
    return (f"out of memory ({one_line(error, 300)}); lower train.batch_size or decode.batch_size, raise "
            "train.grad_accum_steps, or set train.remat=layers; `mcsam precompile` shows what a TPU needs")
  if module.startswith("tensorflow.python.framework.errors"):      # mostly of buckets
    return one_line(error)
  return None


def escape_controls(message: str) -> str:
  """Returns a message in one line that a terminal only shows: file names may hold line breaks and escape sequences."""
  return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: " " if match[0] in "\n\t" else match[0].encode(
      "unicode_escape").decode(), message)


def one_line(error: Exception, max_length: int | None = None) -> str:
  """Returns the message of an error with its line breaks replaced by blanks, cut to `max_length` characters."""
  return " ".join(str(error).split())[:max_length]


def leave_other_hosts(status: int, last_words: str = "") -> None:
  """Exits at once if this process is one of several hosts, which would wait for each other at an orderly exit.

  The other hosts notice: those connected to host 0 when it has gone, host 0 by the missing heartbeat.

  Args:
    status: exit status of the process.
    last_words: printed to stderr before the exit.
  """
  jax = sys.modules.get("jax")
  if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
    print(last_words, end="", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
