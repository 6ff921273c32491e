"""Reads the reports of MIMIC-CXR, from PhysioNet's zip file or from a folder with its contents."""

import re
import zipfile
import zlib

from etils import epath

from mcsam_jax.errors import UnreadableFile, UserError


class ReportArchive:
  """The reports of all studies, keyed by the folder of the study, for example p10/p10000032/s50414267."""

  def __init__(self, path: epath.Path):
    """Opens an archive.

    Args:
      path: the zip file, or the folder that contains p10 ... p19.

    Raises:
      UserError: the zip file is damaged.
    """
    self.path = path
    self._archive = None
    if path.suffix == ".zip":
      try:
        self._archive = zipfile.ZipFile(path.open("rb"))
      except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a complete zip file ({error}); download it again from PhysioNet") from error
      self._names = {re.sub(r"^.*?(?=p\d\d/)", "", name): name for name in self._archive.namelist()}

  def has(self, study: str) -> bool:
    return f"{study}.txt" in self._names if self._archive else (self.path / f"{study}.txt").exists()

  def read(self, study: str) -> str:
    """Returns the text of a study's report.

    Raises:
      UnreadableFile: the report is missing or damaged.
    """
    name = f"{study}.txt"
    try:
      if self._archive is None:
        return (self.path / name).read_bytes().decode()
      return self._archive.read(self._names[name]).decode()
    except (KeyError, FileNotFoundError) as error:
      raise UnreadableFile(self.path / name, "no report") from error
    except (OSError, EOFError, UnicodeDecodeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
      # Only the type of the error: its message may contain the path, which names subject and study.
      raise UnreadableFile(self.path / name, f"damaged report: {type(error).__name__}") from error


def open_report_archive(source: epath.Path, configured: str) -> ReportArchive:
  """Opens the report archive; the arguments are those of `find_report_archive`.

  Raises:
    UserError: there is no archive, or it is damaged.
  """
  path = find_report_archive(source, configured)
  if path is None:
    raise UserError(f"no reports at {configured or source / 'mimic-cxr-reports.zip'}: set "
                    "--config.data.mimic_cxr.reports to mimic-cxr-reports.zip of MIMIC-CXR, or to the folder with its "
                    "contents")
  return ReportArchive(path)


def find_report_archive(source: epath.Path, configured: str) -> epath.Path | None:
  """Returns the zip file of the reports or the folder that contains p10 ... p19, or None if there is neither.

  Args:
    source: the folder of MIMIC-CXR-JPG, which is searched if no path is configured.
    configured: `data.mimic_cxr.reports`, or "".
  """
  candidates = ([epath.Path(configured)] if configured else
                [source / "mimic-cxr-reports.zip", source / "mimic-cxr-reports", source])
  for candidate in candidates:
    if candidate.suffix == ".zip" and candidate.exists():
      return candidate
    for folder in (candidate / "files", candidate):
      if folder.is_dir() and any(folder.glob("p1?/p*/s*.txt")):
        return folder
  return None
