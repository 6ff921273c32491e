"""The exit status of the command line, and the one line that it prints."""

import argparse
import errno

from clu.asynclib import AsyncError
from google.api_core import exceptions as google
from google.auth.exceptions import DefaultCredentialsError, TransportError
import jax
import pytest
import requests
import tensorflow as tf

from mcsam_jax.cli import exit_status, main
from mcsam_jax.errors import EXIT_RETRY, UserError
from mcsam_jax.retryable import OtherHostFailed


def run_failing_verb(error) -> int:
  def run(args, overrides):
    raise error
  return exit_status.run_verb(argparse.Namespace(run=run, verb="train"), [])


@pytest.mark.parametrize("error, status", [
    (UserError("no such field"), 2),
    (FileNotFoundError(errno.ENOENT, "No such file", "annotation.json"), 2),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 2),
    (OSError(errno.ESTALE, "Stale file handle", "x"), EXIT_RETRY),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), EXIT_RETRY),
    (TimeoutError("the store didn't answer"), EXIT_RETRY),
    (OtherHostFailed("host 0 has failed"), EXIT_RETRY),
    (tf.errors.NotFoundError(None, None, "gs://bucket/x"), 2),
    (tf.errors.UnavailableError(None, None, "gs://bucket/x: 503"), EXIT_RETRY),
    (google.Forbidden("GET .../b/bucket: no storage.buckets.get access"), 2),
    (DefaultCredentialsError("Your default credentials were not found."), 2),
    (google.ServiceUnavailable("GET .../b/bucket"), EXIT_RETRY),
    (TransportError("no route to metadata.google.internal"), EXIT_RETRY),
    (requests.ConnectionError("no route"), EXIT_RETRY),
])
def test_retryable_errors_exit_with_75_and_others_with_2(error, status, capsys):
  assert run_failing_verb(error) == status
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith("mcsam train: ") and line.endswith("run the same command again") == (status == EXIT_RETRY)


def chain_errors(error: Exception, cause: Exception) -> Exception:
  error.__cause__ = cause
  return error


@pytest.mark.parametrize("wrap", [AsyncError, ValueError])
def test_an_error_is_retryable_if_its_cause_is(wrap, capsys):
  busy = tf.errors.UnavailableError(None, None, "gs://bucket/x: 503")
  assert run_failing_verb(chain_errors(wrap("in another thread"), busy)) == EXIT_RETRY
  assert "in another thread; run the same command again" in capsys.readouterr().err
  assert run_failing_verb(chain_errors(UserError("no such bucket"), busy)) == 2       # a UserError has been diagnosed
  with pytest.raises(wrap):
    run_failing_verb(chain_errors(wrap("in another thread"), tf.errors.NotFoundError(None, None, "gs://bucket/x")))


@pytest.mark.parametrize("message, lost", [
    ("UNAVAILABLE: connection reset by peer", True),
    ("FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:2222", True),
    ("INTERNAL: An unexpected peer shows up in the launch group with a different launch id", True),
    ("INTERNAL: ptxas exited with non-zero error code 2", False),
])
def test_a_lost_host_is_retryable_on_the_remaining_hosts(message, lost, monkeypatch, capsys):
  left = []
  error = jax.errors.JaxRuntimeError(message)
  with pytest.raises(jax.errors.JaxRuntimeError):                # a single host has no other to lose
    run_failing_verb(error)
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(exit_status, "leave_other_hosts", lambda status, last_words="": left.append(status))
  if lost:
    assert run_failing_verb(error) == EXIT_RETRY and left == [EXIT_RETRY]
  else:
    with pytest.raises(jax.errors.JaxRuntimeError):
      run_failing_verb(error)
    assert left == [1]


def test_out_of_memory_names_the_fields_that_save_memory(capsys):
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes")
  assert run_failing_verb(error) == 2
  line, = capsys.readouterr().err.splitlines()
  assert "17179869184 bytes" in line and "train.batch_size" in line and "train.remat=layers" in line


@pytest.mark.parametrize("arguments, message", [
    (["trian"], "mcsam: argument VERB: invalid choice: 'trian'"),
    ([], "mcsam: the following arguments are required: VERB"),
    (["score", "--predictions", "x"], "mcsam score: the following arguments are required: --references")])
def test_a_wrong_argument_gets_one_line_that_points_to_help(arguments, message, capsys):
  with pytest.raises(SystemExit) as exited:
    main(arguments)
  err = capsys.readouterr().err
  assert exited.value.code == 2 and err.startswith(message) and err.count("\n") == 1 and " --help" in err


def test_an_error_cannot_control_the_terminal(capsys):
  assert run_failing_verb(UserError("\x1b[31mred\x07 \x9b2J\nsecond line: a file")) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and "\x1b" not in err and "\x9b" not in err and "second line: a file" in err
def test_control_characters_in_an_error_are_not_sent_to_the_terminal(capsys):
  assert run_failing_verb(UserError("x\x1b[2J\x1b]0;owned\x07.pth: two\nlines")) == 2
  err = capsys.readouterr().err
  assert err.removesuffix("\n").isprintable() and ".pth" in err
