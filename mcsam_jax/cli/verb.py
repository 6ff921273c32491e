"""What every verb of the command line has, and the arguments that several verbs share."""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import shlex

from mcsam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Verb:
  """One verb of `mcsam`.

  Attributes:
    name: as it is typed.
    summary: one line for `mcsam --help`.
    add_arguments: adds the verb's arguments to its parser.
    run: takes the parsed arguments and the remaining ones (config overrides).
    example: a command for the verb's help.
    takes_config_fields: whether `--config.field=value` may follow.
    exit_note: added to the list of exit statuses in the help.
  """
  name: str
  summary: str
  add_arguments: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace, list[str]], None]
  example: str = ""
  takes_config_fields: bool = True
  exit_note: str = ""


def add_config(parser: argparse.ArgumentParser, **kwargs) -> None:
  """Adds --config, required unless `kwargs` say otherwise."""
  parser.add_argument("--config", **{"required": True, "help": "name of a config in configs/, or path of a config "
                                     "file, which is run as Python", **kwargs})


def add_workdir(parser: argparse.ArgumentParser, **kwargs) -> None:
  """Adds --workdir, required unless `kwargs` say otherwise."""
  parser.add_argument("--workdir", **{"required": True, "help": "folder of the run, local or gs://", **kwargs})


def add_step(parser: argparse.ArgumentParser) -> None:
  """Adds --step, the checkpoint to load."""
  parser.add_argument("--step", type=int, help="step of the checkpoint; default: the best on val by train.best_metric, "
                      "or the last one if no metric is set")


def print_next_command(verb: str, *arguments: str, overrides: Sequence[str] = ()) -> None:
  """Prints the command that the user may want to run next, quoted so that it can be pasted into a shell."""
  print(f"next: {shlex.join(['mcsam', verb, *arguments, *overrides])}")


def refuse_overrides(overrides: list[str]) -> None:
  """Raises UserError if arguments are left that the verb doesn't know."""
  if overrides:
    raise UserError(f"unexpected argument {overrides[0]}")


def require_at_least(flag: str, minimum: int, *values: int | None) -> None:
  """Raises UserError if a value of `flag` is below `minimum`; None passes."""
  for value in values:
    if value is not None and value < minimum:
      raise UserError(f"{flag} {value}: must be at least {minimum}")
