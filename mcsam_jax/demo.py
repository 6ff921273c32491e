"""`mcsam demo`: phantoms are drawn, a memory is made, MCSAM learns to write, and is scored on phantoms it never saw."""

import json
import textwrap
import time

from etils import epath
import matplotlib.figure

from input_pipeline.builder.prepare import prepare
from input_pipeline.images import decode
from input_pipeline.splits import open_split
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.evaluate import evaluate
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.pretrained.image_encoder import import_image_encoder
from mcsam_jax.training.train import train

NUM_SHOWN = 3


def demo(workdir: str, overrides: list[str] = (), log=print) -> None:
  """Runs every verb on the phantoms; what an earlier call finished is not done again.

  Args:
    workdir: of the run; its examples are written to `workdir`/demo.png, their images to `workdir`/phantoms.
    overrides: `--config.field=value`, e.g. model.use_memory=false.
  """
  started = time.monotonic()
  config = configs.load_config("phantom", overrides)
  if config.data.name != "phantom":
    raise UserError(f"the demo is about phantoms; for data.name={config.data.name} use the other verbs")

  log("== weights: mcsam import-weights efficientnet-lite0")
  weights = epath.Path(config.encoder.weights)
  if config.encoder.weights and not weights.exists():
    weights.parent.mkdir(parents=True, exist_ok=True)
    import_image_encoder("efficientnet-lite0", str(weights), log=lambda line: None)

  log("== data: mcsam prepare")
  prepare(config, log)

  log("\n== memory and training: mcsam train")
  train(config, workdir, log)

  log("\n== scores: mcsam evaluate --split test")
  best = Checkpoints(configs.absolute_path(workdir), best_metric=config.train.best_metric, read_only=True).best()
  path = configs.absolute_path(workdir) / "eval"
  finished = path / f"test-{best}.json"
  if finished.exists():
    scores = json.loads(finished.read_text())
    log(format_table(scores))
  else:
    scores = evaluate(workdir, "test", log=log)

  split = open_split(config, "test")
  lines = (path / f"test-{scores['step']}.jsonl").read_text().splitlines()
  studies = pick([json.loads(line) for line in lines], split)
  for study in studies:
    log(f"\n{study['id']}\n  reference  {study['reference']}\n  generated  {study['generated']}")
  picture, films = configs.absolute_path(workdir) / "demo.png", configs.absolute_path(workdir) / "phantoms"
  draw(studies, split, picture)
  for study in studies:
    write_films(split[study["record"]], films / study["id"])
  log(f"\nthese studies with their images: {picture}")
  log(f"demo done in {(time.monotonic() - started) / 60:.1f} min; next:\n"
       f"  mcsam report --workdir {workdir} {films}      # image files in, reports out; then your own\n"
       "  'Train on your own files' in README.md")


def pick(studies: list[dict], split) -> list[dict]:
  """Returns the studies with most findings among the first 100, with their records."""
  for number, study in enumerate(studies):
    study["record"] = number
  def num_findings(study):
    return sum(value == "positive" for value in split.metadata[study["record"]]["labels"].values())
  return sorted(studies[:100], key=num_findings, reverse=True)[:NUM_SHOWN]


def write_films(record: dict, folder: epath.Path) -> None:
  """Writes the images of a record as files, VIEW.jpg, as somebody would have them on a disk."""
  folder.mkdir(parents=True, exist_ok=True)
  for view, jpeg in zip(record["views"], record["images"]):
    (folder / f"{view}.jpg").write_bytes(jpeg)


def draw(studies: list[dict], split, path: epath.Path) -> None:
  """Writes a picture: the frontal image of each study beside its reference and generated report."""
  figure = matplotlib.figure.Figure(figsize=(10, 3.2 * len(studies)))
  for row, study in enumerate(studies):
    image, words = figure.add_subplot(len(studies), 2, 2 * row + 1), figure.add_subplot(len(studies), 2, 2 * row + 2)
    image.imshow(decode(split[study["record"]]["images"][0], 256)[..., 0], cmap="gray", vmin=0, vmax=255)
    image.axis("off")
    words.axis("off")
    reports = [f"{name}\n" + "\n".join(textwrap.wrap(study[name], 60)) for name in ("reference", "generated")]
    words.text(0, 1, "\n\n".join(reports), va="top", fontsize=9)
  figure.savefig(path, dpi=90, bbox_inches="tight")
