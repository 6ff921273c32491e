"""Finds the entries of the tables of `rule_terms` in a text."""

from collections.abc import Sequence
import re
from typing import NamedTuple

from mcsam_jax.labelers import rule_terms


class Match(NamedTuple):
  """A table entry found in a text: text[start:end]."""
  meaning: str
  start: int
  end: int


class Scanner:
  """Finds the entries of a table of `rule_terms` in a text, from left to right."""

  def __init__(self, table: Sequence[tuple[str, Sequence[str]]]):
    """Compiles the table into one regular expression with a group per entry."""
    self._meanings = [meaning for meaning, _ in table]
    self._pattern = compile_terms(
        r"(?:(?<!\w)|(?=[:?]))(?:" + "|".join(f"({'|'.join(words)})" for _, words in table) + r")(?!\w)")

  def __call__(self, text: str) -> list[Match]:
    """Returns the matches in a text."""
    return [Match(self._meanings[(match.lastindex or 0) - 1], *match.span())
            for match in self._pattern.finditer(text)]


def compile_terms(pattern: str, flags: int = 0) -> re.Pattern:
  """Returns the regular expression of a pattern in the notation of `rule_terms`."""
  return re.compile(pattern.replace(" ", r"[\s\-]+").replace("~", r"[\s\-]*"), flags)


find_terms, find_organs = Scanner(rule_terms.TERMS), Scanner(rule_terms.ORGANS)
find_states, find_cues = Scanner(rule_terms.STATES), Scanner(rule_terms.CUES)
