"""Files that appear whole or not at all, whatever stops the program while it writes."""

from etils import epath


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file under another name beside `path`, then gives it its own; folders are made.

  Raises:
    OSError: as the file system says it; what was at `path` is untouched and nothing unfinished stays.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.parent / f".{path.name}.unfinished"
  try:
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.replace(path)
  except BaseException:                             # a signal that stops the run too
    unfinished.unlink(missing_ok=True)
    raise
