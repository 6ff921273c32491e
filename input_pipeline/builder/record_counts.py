"""How many studies of a source were kept, and why the others weren't: by the build, and by the choice of a target."""

import json

from etils import epath
import tensorflow_datasets as tfds


def counted(builder: tfds.core.DatasetBuilder, skipped: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
  """Returns how many studies of each split are `kept`, and left out by reason; {} where nothing is told of any.

  Args:
    passed_over: of each split, how many records the target leaves unused, by reason (`splits.skipped`).
  """
  made = _made(builder)
  rows = {split: {"kept": row["kept"] - sum(skipped[split].values()), **row["left_out"], **skipped[split]}
          for split, row in made["splits"].items()}
  return rows if made["notes"] or any(len(row) > 1 for row in rows.values()) else {}


def counts_table(builder: tfds.core.DatasetBuilder, rows: dict[str, dict[str, int]]) -> str:
  """Returns the counts of `counted` as a table, and the notes of the source below it."""
  reasons = ["kept", *sorted(set().union(*rows.values()) - {"kept"})]
  width = max(map(len, reasons))
  lines = [f"{'':{width}}" + "".join(f"{split:>10}" for split in rows)]
  for reason in reasons:
    lines.append(f"{reason:{width}}" + "".join(f"{row.get(reason, 0):>10,}" for row in rows.values()))
  return "\n".join([*lines, *_made(builder)["notes"]])


def _made(builder: tfds.core.DatasetBuilder) -> dict:
  path = epath.Path(builder.data_dir) / "build.json"
  return json.loads(path.read_text()) if path.exists() else {"splits": {}, "notes": []}
