"""The reports of MIMIC-CXR, in the zip file that PhysioNet gives or extracted from it."""

import re
import zipfile
import zlib

from etils import epath

from mcsam_jax.errors import UnreadableFile, UserError


class ReportArchive:
  """The reports, zipped or not, found by the folder of their study: p10/p10000032/s50414267."""

  def __init__(self, path: epath.Path):
    self.path = path
    self._archive = None
    if path.suffix == ".zip":
      try:
        self._archive = zipfile.ZipFile(path.open("rb"))
      except zipfile.BadZipFile as error:
        raise UserError(f"{path} is no whole zip file ({error}); get it again from PhysioNet") from error
      self._names = {re.sub(r"^.*?(?=p\d\d/)", "", name): name for name in self._archive.namelist()}

  def has(self, study: str) -> bool:
    return f"{study}.txt" in self._names if self._archive else (self.path / f"{study}.txt").exists()

  def read(self, study: str) -> str:
    """Returns the text of a study's report.

    Raises:
      Unreadable: it is missing or damaged.
    """
    name = f"{study}.txt"
    try:
      if self._archive is None:
        return (self.path / name).read_text()
      return self._archive.read(self._names[name]).decode()
    except (KeyError, FileNotFoundError) as error:
      raise UnreadableFile(self.path / name, "no report") from error
    except (OSError, EOFError, UnicodeDecodeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
      raise UnreadableFile(self.path / name, f"damaged report: {type(error).__name__}") from error     # others name it


def open_report_archive(source: epath.Path, given: str) -> ReportArchive:
  """Returns the reports at `given`, or where they may stand in the source's folder.

  Raises:
    UserError: there are none.
  """
  found = find_report_archive(source, given)
  if found is None:
    raise UserError(f"no reports at {given or source / 'mimic-cxr-reports.zip'}: set --config.data.mimic_cxr.reports "
                    "to mimic-cxr-reports.zip of MIMIC-CXR, or to the folder that it was extracted to")
  return ReportArchive(found)


def find_report_archive(source: epath.Path, given: str) -> epath.Path | None:
  """Returns the zip file of the reports, or the folder that holds p10 ... p19; None where there is neither."""
  places = ([epath.Path(given)] if given else
            [source / "mimic-cxr-reports.zip", source / "mimic-cxr-reports", source])
  for place in places:
    if place.suffix == ".zip" and place.exists():
      return place
    for folder in (place / "files", place):
      if folder.is_dir() and any(folder.glob("p1?/p*/s*.txt")):
        return folder
  return None
