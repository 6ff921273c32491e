"""`mcsam demo`: prepares phantoms, trains MCSAM on them, and evaluates it on phantoms that it has not seen."""

from collections.abc import Sequence
import json
import shlex
import time

from etils import epath

from input_pipeline.builder.prepare import prepare
from input_pipeline.datasets.records import Record
from input_pipeline.splits import open_split, Split
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.demo.picture import draw_examples
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.evaluate import evaluate
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.pretrained.image_encoder import import_image_encoder
from mcsam_jax.training.train import train

NUM_EXAMPLES = 3
NUM_CANDIDATES = 100            # studies among which the examples are selected


def demo(workdir: str, overrides: Sequence[str] = (), log=print) -> None:
  """Runs import-weights, prepare, train and evaluate on phantoms; steps that an earlier call finished are skipped.

  Args:
    workdir: the workdir of the run. Example studies are drawn to `workdir`/demo.png; their images are written to
      `workdir`/phantoms.
    overrides: `--config.field=value` arguments, e.g. model.use_memory=false.

  Raises:
    UserError: the overrides select another data set.
  """
  start = time.monotonic()
  config = configs.load_config("phantom", list(overrides))
  if config.data.name != "phantom":
    raise UserError(f"mcsam demo only runs on data.name=phantom, found data.name={config.data.name}: use mcsam prepare "
                    "and mcsam train for other data sets")

  log("== pretrained weights: mcsam import-weights efficientnet-lite0")
  weights = epath.Path(config.encoder.weights)
  if config.encoder.weights and not weights.exists():
    weights.parent.mkdir(parents=True, exist_ok=True)
    import_image_encoder("efficientnet-lite0", str(weights), log=lambda line: None)

  log("== data: mcsam prepare")
  prepare(config, log)

  log("\n== memory and training: mcsam train")
  train(config, workdir, log)

  log("\n== evaluation: mcsam evaluate --split test")
  root = configs.absolute_path(workdir)
  best_step = Checkpoints(root, best_metric=config.train.best_metric, read_only=True).best()
  scores_path = root / "eval" / f"test-{best_step}.json"
  if scores_path.exists():
    scores = json.loads(scores_path.read_text())
    log(format_table(scores))
  else:
    scores = evaluate(workdir, "test", log=log)

  split = open_split(config, "test")
  lines = (root / "eval" / f"test-{scores['step']}.jsonl").read_text().splitlines()
  examples = select_examples([json.loads(line) for line in lines], split)
  for study in examples:
    log(f"\n{study['id']}\n  reference  {study['reference']}\n  generated  {study['generated']}")
  figure_path, image_folder = root / "demo.png", root / "phantoms"
  draw_examples(examples, split, config.data.phantom.seed, figure_path)
  for study in examples:
    write_image_files(split[study["record"]], image_folder / study["id"])
  log(f"\nexamples with their images: {figure_path}")
  log(f"demo finished in {(time.monotonic() - start) / 60:.1f} min; next:\n"
      f"  {shlex.join(['mcsam', 'report', '--workdir', workdir, str(image_folder)])}"
      "      # generates reports for image files\n"
      "  'Train on your own files' in README.md")


def select_examples(studies: Sequence[dict], split: Split) -> list[dict]:
  """Returns the NUM_EXAMPLES studies with the most findings among the first ones, with their "record" added.

  Args:
    studies: one per record of the split, in its order.
  """
  candidates = [study | {"record": record} for record, study in enumerate(studies[:NUM_CANDIDATES])]

  def count_findings(study: dict) -> int:
    return sum(label == "positive" for label in split.metadata[study["record"]]["labels"].values())

  return sorted(candidates, key=count_findings, reverse=True)[:NUM_EXAMPLES]


def write_image_files(record: Record, folder: epath.Path) -> None:
  """Writes the images of a record as VIEW.jpg, like the files of a user."""
  folder.mkdir(parents=True, exist_ok=True)
  for view, jpeg in zip(record["views"], record["images"]):
    (folder / f"{view}.jpg").write_bytes(jpeg)
