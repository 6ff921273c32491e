"""Finds a user's own function or class by the name that a config gives it: `package.module:name`.

The fields that take such a name are listed in docs/extending.md.
"""

import difflib
import importlib
import os
import re
import sys
from typing import Any

from mcsam_jax.errors import UserError


def is_import_name(value: str) -> bool:
  """Returns whether a field's value names something to import, rather than one of the project's own choices."""
  return ":" in value


def check_form(field: str, value: str) -> None:
  """Checks the form of a name without importing anything.

  Raises:
    UserError: it is not package.module:name.
  """
  if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
    raise UserError(f"{field}={value}: expected package.module:name, such as my_project.parts:make_part")


def load_by_name(field: str, value: str) -> Any:
  """Returns the function or class `package.module:name`.

  The module is installed, on PYTHONPATH, or in the working directory.

  Args:
    field: the config field, for errors.
    value: its value.

  Raises:
    UserError: the value has another form, or the module or the name in it can't be found, imported or called.
  """
  check_form(field, value)
  module_name, _, name = value.partition(":")
  if module_name.partition(".")[0] in sys.stdlib_module_names:      # a config from elsewhere must not call os.abort
    raise UserError(f"{field}={value}: {module_name} is a module of Python itself, expected one of your own")
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())                    # last, so that it hides no installed package
  try:
    module = importlib.import_module(module_name)
  except Exception as error:                        # a user's own code may raise anything
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
      raise UserError(f"{field}={value}: there is no module {error.name}; install it, put its folder on PYTHONPATH, or "
                      "run the command in that folder") from error
    raise UserError(f"{field}={value}: importing {module_name} failed with {describe(error)}") from error
  if not hasattr(module, name):
    close = difflib.get_close_matches(name, vars(module), 1)
    raise UserError(f"{field}={value}: {module.__file__ or module_name} has no {name}"
                    + (f", did you mean {close[0]}?" if close else ""))
  found = getattr(module, name)
  if not callable(found):
    raise UserError(f"{field}={value}: {name} is a {type(found).__name__}, expected a function or class")
  return found


def call_by_name(field: str, value: str, *args, returns: Any, method: str = "") -> Any:
  """Returns what the function `package.module:name`, or a method of that class, gives for some arguments.

  Args:
    field: the config field, for errors.
    value: its value.
    args: arguments of the call.
    returns: class of the result, or `collections.abc.Callable`.
    method: name of a class method, to be called instead; the class is then a subclass of `returns`.

  Raises:
    UserError: see `load_by_name`; or the call fails, or returns something else.
  """
  function = load_by_name(field, value)
  if method:
    if not isinstance(function, type) or not issubclass(function, returns):
      raise UserError(f"{field}={value}: expected a subclass of {returns.__module__}.{returns.__name__}")
    function = getattr(function, method)
  try:
    result = function(*args)
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"{field}={value}: the call failed with {describe(error)}") from error
  if not isinstance(result, returns):
    raise UserError(f"{field}={value}: returned {type(result).__name__}, expected {returns.__name__}")
  return result


def describe(error: Exception) -> str:
  """Returns type and message of an error of a user's own code in one line."""
  lines = str(error).strip().splitlines()
  return type(error).__name__ + (f": {lines[0]}" if lines else "")
