"""The one exception that a user is meant to read."""


class UserError(Exception):
  """Something the user can put right: bad input, a wrong field, a missing file.

  The message is one line that names the file, record or field, says what was
  found and what to do about it. The command line prints it without a traceback
  and leaves with status 2.
  """
