"""How many studies of a source are used and why the others are not: skipped by the build or by the choice of target."""

from etils import epath
import tensorflow_datasets as tfds

from mcsam_jax.errors import UserError
from mcsam_jax.files.untrusted import read_json


def count_records(builder: tfds.core.DatasetBuilder,
                  skipped: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
  """Returns for each split how many studies are `kept`, and how many are skipped by reason.

  Args:
    skipped: for each split, the number of records that `data.target` and `data.min_words` leave unused, by reason
      (`splits.count_skipped`).

  Returns:
    {} if no study was skipped and the source has no notes.
  """
  summary = _read_build_summary(builder)
  rows = {split: {"kept": row["kept"] - sum(skipped[split].values()), **row["skipped"], **skipped[split]}
          for split, row in summary["splits"].items()}
  return rows if summary["notes"] or any(len(row) > 1 for row in rows.values()) else {}


def format_record_counts(builder: tfds.core.DatasetBuilder, counts: dict[str, dict[str, int]]) -> str:
  """Returns the result of `count_records` as a table with one column per split, followed by the notes of the source."""
  reasons = ["kept", *sorted(set().union(*counts.values()) - {"kept"})]
  width = max(map(len, reasons))
  lines = [f"{'':{width}}" + "".join(f"{split:>10}" for split in counts)]
  for reason in reasons:
    lines.append(f"{reason:{width}}" + "".join(f"{row.get(reason, 0):>10,}" for row in counts.values()))
  return "\n".join([*lines, *_read_build_summary(builder)["notes"]])


def _read_build_summary(builder: tfds.core.DatasetBuilder) -> dict:
  path = epath.Path(builder.data_dir) / "build.json"
  if not path.exists():
    return {"splits": {}, "notes": []}
  try:
    summary = read_json(path)
    is_valid = set(summary["splits"]) == set(builder.info.splits) and all(
        isinstance(note, str) for note in summary["notes"]) and all(
        isinstance(row, dict) and isinstance(row["skipped"], dict)
        and all(type(count) is int for count in (row["kept"], *row["skipped"].values()))
        for row in summary["splits"].values())
  except (OSError, ValueError, TypeError, LookupError, AttributeError):
    is_valid = False
  if not is_valid:
    raise UserError(f"{path} is damaged, or was written by another version: delete {builder.data_dir} and run "
                    "`mcsam prepare`")
  return summary
