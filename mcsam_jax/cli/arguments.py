"""Reads the command line before the verb runs, so that a mistyped name is reported before JAX is imported."""

import argparse
from collections.abc import Iterable, Sequence
import difflib
import re

from mcsam_jax.errors import UserError

CONFIG_PREFIX = "--config."


class Parser(argparse.ArgumentParser):
  """An argument parser that reports a wrong argument in one line, suggests the nearest name and points to --help."""

  def error(self, message: str):
    wrong = re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
    suggestion = suggest(wrong[1], re.findall(r"[\w.-]+", wrong[2])) if wrong else ""
    self.exit(2, f"{self.prog}: {message}{suggestion}; see {self.prog} --help\n")


def suggest(name: str, known: Iterable[str]) -> str:
  """Returns ", did you mean X?" for the nearest known name; "" if none is near."""
  close = difflib.get_close_matches(name, list(known), 1, cutoff=0.7)
  return f", did you mean {close[0]}?" if close else ""


def join_config_values(argv: Sequence[str]) -> list[str]:
  """Returns the arguments with `--config.field value` as `--config.field=value`."""
  joined = []
  for argument in argv:
    if joined and joined[-1].startswith(CONFIG_PREFIX) and "=" not in joined[-1] and not argument.startswith("--"):
      joined[-1] += f"={argument}"
    else:
      joined.append(argument)
  return joined


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, overrides: Sequence[str],
                    takes_config_fields: bool) -> None:
  """Checks the config's name and the arguments that the parser doesn't know, which must set config fields.

  Args:
    parser: that of the verb.
    args: the arguments that it knows.
    overrides: the others.
    takes_config_fields: whether the verb has a config.

  Raises:
    UserError: an argument, a config or a field is unknown, or a value has the wrong type.
  """
  for argument in overrides:
    if not takes_config_fields or not argument.startswith(CONFIG_PREFIX):
      raise UserError(f"unexpected argument {argument}{suggest(argument.partition('=')[0], list_options(parser))}")
  config = getattr(args, "config", None)
  if not config and not overrides:
    return
  from mcsam_jax.config import find_config, parse_overrides
  if config:
    find_config(config)
  parse_overrides(overrides)


def list_options(parser: argparse.ArgumentParser) -> list[str]:
  """Returns the options of a parser and of its subcommands, such as --workdir."""
  options = []
  for action in parser._actions:
    options += action.option_strings
    if isinstance(action, argparse._SubParsersAction):
      options += [option for each in action.choices.values() for option in list_options(each)]
  return options
