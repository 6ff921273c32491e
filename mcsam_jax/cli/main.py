"""Parses the command line of `mcsam` and runs one verb.

A verb is a module-level object with `name`, `summary`, `add_arguments(parser)` and `run(args, overrides)`. Verbs import
what they need when they run, so that `mcsam --help` and messages about mistyped names are instant.
"""

import argparse
from collections.abc import Callable
import contextlib
import io
import os
import signal
import sys
import textwrap
import threading
import warnings

from absl import logging

from mcsam_jax import __version__
from mcsam_jax.cli import exit_status
from mcsam_jax.cli.arguments import check_arguments, join_config_values, Parser
from mcsam_jax.cli.data_and_training import VERBS as DATA_AND_TRAINING
from mcsam_jax.cli.evaluation import VERBS as EVALUATION
from mcsam_jax.cli.tools import VERBS as TOOLS
from mcsam_jax.cli.verb import Verb
from mcsam_jax.errors import Preempted

VERBS = (*DATA_AND_TRAINING, *EVALUATION, *TOOLS)     # in the order of `mcsam --help`


def main(argv: list[str] | None = None) -> int:
  """Runs a verb and returns its exit status.

  Args:
    argv: arguments without the program's name; None: those of the process.

  Returns:
    0 on success; 2 when the user can fix something (one line on stderr says what); 75 after SIGTERM or a lost host,
    when the same command continues the work; 130 after Ctrl-C; verbs may add others.
  """
  let_output_survive_any_encoding()
  parser = make_parser()
  args, overrides = parser.parse_known_args(join_config_values(sys.argv[1:] if argv is None else argv))
  silence_libraries()
  with sigterm_raises_preempted():
    status = exit_status.run_verb(args, overrides)
  if status in (1, 2):
    exit_status.leave_other_hosts(status)
  return status


def make_parser() -> Parser:
  """Returns the parser of all verbs."""
  parser = Parser("mcsam", description="Writes reports of chest X-rays with MCSAM. Config fields are set as "
                  "--config.field.name=value.", epilog="example: mcsam demo; `mcsam VERB --help` has one for each verb")
  parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
  subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  for verb in VERBS:
    fields = "" if not verb.takes_config_fields else (
        "Config fields, all explained in configs/default.py, are set as --config.field.name=value. ")
    subparser = subparsers.add_parser(
        verb.name, help=verb.summary, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{textwrap.fill(verb.summary, 100)}\n\nexample:\n  {verb.example}",
        epilog=textwrap.fill(f"{fields}Exit status: 0 on success; 2 if something must be fixed first; 75 after SIGTERM "
                             f"or a lost host: run the same command again{verb.exit_note}.", 100))
    verb.add_arguments(subparser)
    subparser.set_defaults(run=make_run(verb, subparser))
  return parser


def make_run(verb: Verb, parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace, list[str]], None]:
  """Returns the verb's `run`, which first checks the arguments."""
  def run(args: argparse.Namespace, overrides: list[str]) -> None:
    check_arguments(parser, args, overrides, verb.takes_config_fields)
    verb.run(args, overrides)
  return run


@contextlib.contextmanager
def sigterm_raises_preempted():
  """Raises `Preempted` on SIGTERM inside the context, so that files are closed; training has its own handler."""
  def raise_preempted(number, frame):
    raise Preempted(number)

  if threading.current_thread() is not threading.main_thread():      # only the main thread may handle signals
    yield
    return
  before = signal.signal(signal.SIGTERM, raise_preempted)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def let_output_survive_any_encoding() -> None:
  """Makes characters that the terminal can't show, such as a file name in Chinese in cp1252, appear as \\uXXXX."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def silence_libraries() -> None:
  """Keeps informational messages of libraries out of the output; their errors still show."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")   # TensorFlow only reads records here
  if os.path.expanduser("~") == "~":                    # Keras would make a folder of this name where one works
    os.environ.setdefault("KERAS_HOME", os.devnull)
  logging.set_verbosity(logging.ERROR)
  # Orbax also raises what it logs; a full disk would otherwise print dozens of tracebacks.
  logging.get_absl_logger().addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
  warnings.filterwarnings("ignore", category=FutureWarning)
