"""The model card of an exported model: what it is, what it was trained on, how good it is, and what its limits are.

Of the scores only numbers are taken, so that no report of the data set reaches the card.
"""

from collections.abc import Iterator, Mapping
import json
import math
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.config import default_config
from mcsam_jax.evaluation.report_text import NOTICE
from mcsam_jax.metrics.nlg import METRICS

SPLITS = ("test", "val")
# What is known of the licences of weights, by the data that they were trained on (`pretraining_data` of encoder.npz).
LICENCES = {
    "ImageNet-1k": "trained on ImageNet-1k, whose images are for non-commercial research and education; torchvision "
                   "publishes its ResNets under BSD-3-Clause, Google its EfficientNet-Lite under Apache-2.0",
    "MedCLIP's": "trained by the authors of MedCLIP on MIMIC-CXR and CheXpert, whose data use agreements apply",
}


def write_model_card(work: Workdir, step: int, variables: Mapping, encoder_origin: Mapping[str, str],
                     versions: Mapping[str, str]) -> str:
  """Returns README.md of an exported model.

  Args:
    work: the workdir.
    step: the step that is exported.
    variables: of the network.
    encoder_origin: what is known of the pretrained encoder; {} if training started without one.
    versions: of the packages that wrote the export.
  """
  config = work.config
  millions = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables["params"])) / 1e6
  restricted = ("\nThe data set is restricted. Weights, vocabulary and the reference sample of image features were "
                "made from it: its data use agreement says whether and with whom they may be shared.\n"
                if config.data.restricted else "")
  lines = [
      "# Chest X-ray report generation with MCSAM", "",
      f"**{NOTICE}**", "",
      "A model that writes the report of a chest X-ray study: Memory-based Cross-modal Semantic Alignment Network "
      "(Tao, Ma, Yu, Zhang; arXiv 2404.00588), implemented in JAX by mcsam-jax "
      f"{versions['mcsam_jax']}. {millions:.1f} million parameters, image encoder {config.encoder.name}"
      f"{_describe_frozen_stages(config)}, step {step}.", "",
      "```python", "import mcsam_jax", "", 'model = mcsam_jax.load("PATH_OF_THIS_FOLDER")',
      'report, = model.generate([["frontal.png", "lateral.png"]])', "print(report)", "```", "",
      "On the command line: `mcsam report --workdir PATH_OF_THIS_FOLDER IMAGE`.", "",
      "## Data", "",
      f"Trained on {_describe_data(work)}. The model sees up to {config.data.num_views} views of a study, each as a "
      f"square of {config.data.image_size} pixels, and writes at most {config.tokenizer.max_length} tokens of a "
      f"vocabulary of {work.tokenizer.vocab_size}.", restricted,
      "## Scores", "", *_list_scores(work, step),
      "## Limits", "",
      "- A fluent report can be wrong: it can miss findings and state findings that aren't there. Scores of texts say "
      "little about that; the F1 of findings says more.",
      "- It has only seen images like those of its training data. Views, devices, ages and diseases that are rare "
      "there are written about as readily, and wrongly. `ood.npz` lets the programs warn of images that look "
      "different; it doesn't notice all of them.",
      "- It doesn't know earlier studies, the indication or the patient's history.",
      "- Heat maps show where the network attended, not why it wrote a word.", "",
      "## Licences", "",
      *_list_licences(work, encoder_origin), "",
      "## Versions", "",
      ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", ""]
  return "\n".join(lines)


def _describe_frozen_stages(config: ConfigDict) -> str:
  """Returns which stages of the image encoder are frozen, in parentheses; "" if none is."""
  if not config.encoder.frozen:
    return ""
  trained = config.encoder.trained_stages
  return f" (frozen and not counted, but for the last {trained} of its stages)" if trained else " (frozen, not counted)"


def _describe_data(work: Workdir) -> str:
  config = work.config
  names = {"phantom": "synthetic X-rays (phantoms) drawn by the project, not on X-rays of patients",
           "mimic_cxr": "MIMIC-CXR", "r2gen_json": "a data set in the format of R2Gen's annotation.json"}
  sizes = ", ".join(f"{config.data.phantom[f'num_{split}']} in {split}" for split in ("train", "val", "test"))
  sections = {"findings": "the section findings", "impression": "the section impression",
              "both": "the sections findings and impression"}
  name = str(names.get(config.data.name, config.data.name)) + (f" ({sizes})" if config.data.name == "phantom" else "")
  return f"{name}; it writes {sections[config.data.target]}, cleaned by the rules `{config.data.cleaning}`"


def _list_scores(work: Workdir, step: int) -> Iterator[str]:
  """Yields the lines of a table for each evaluated split."""
  evaluated = 0
  for split in SPLITS:
    scores = _read_scores(work, split, step)
    if scores is None:
      continue
    evaluated += 1
    protocol = scores["preparation"]["main_protocol"]
    yield (f"Split {split}: {scores['num_studies']} studies, reports prepared as `{protocol}`, findings read by the "
           f"labeler `{scores['labeler']}`, {scores['decode']['search']} search. In brackets: 95 % interval over "
           "resampled subjects. Constant: the one report that is best on val for each metric. Shuffled: this model's "
           "reports, each given to another study.")
    yield from ("", "| | this model | constant report | shuffled images |", "| --- | --- | --- | --- |")
    constant, shuffled = scores["baselines"].get("constant") or {}, scores["controls"].get("shuffled_images") or {}
    rows = [(metric, ("nlg", protocol, metric), ("nlg", metric)) for metric in METRICS]
    rows += [(f"findings, {average} F1", ("labels", average, "f1"), ("labels", average, "f1"))
             for average in ("micro", "macro")]
    for name, path, constant_path in rows:
      value = _look_up(scores, path)
      if value is None:
        continue
      low, high = (_look_up(scores["intervals"], (*path, end)) for end in ("low", "high"))
      interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
      others = (_look_up(constant, constant_path), _look_up(shuffled, path))
      yield f"| {name} | {value:.3f}{interval} | " + " | ".join(
          "-" if other is None else f"{other:.3f}" for other in others) + " |"
    yield ""
  if not evaluated:
    yield from ("Not evaluated: the workdir has no scores of this step. `mcsam evaluate` computes them.", "")


def _read_scores(work: Workdir, split: str, step: int) -> dict[str, Any] | None:
  """Returns the scores of a split with the workdir's own settings; None if it was not evaluated, or not readably."""
  path = work.path / "eval" / f"{split}-{step}.json"
  try:
    scores = json.loads(path.read_text())
    expected = {"preparation", "labeler", "decode", "baselines", "controls", "intervals"}
    return scores if expected <= scores.keys() else None
  except (OSError, ValueError, AttributeError):
    return None


def _look_up(tree: Any, path: tuple[str, ...]) -> float | None:
  """Returns a number in nested dictionaries; None if it is absent or not a number."""
  for key in path:
    tree = tree.get(key) if isinstance(tree, Mapping) else None
  return float(tree) if isinstance(tree, int | float) and math.isfinite(tree) else None


def _list_licences(work: Workdir, encoder_origin: Mapping[str, str]) -> Iterator[str]:
  yield "- The program mcsam-jax: Apache-2.0."
  if not encoder_origin:
    yield "- No pretrained weights were used for the image encoder."
  else:
    data = encoder_origin.get("pretraining_data", "unknown")
    licence = encoder_origin.get("license") or LICENCES.get(data) or (
        f"trained on: {data}. Their licence is not recorded; ask their authors before you share this model")
    yield (f"- The image encoder {encoder_origin.get('architecture', work.config.encoder.name)} started from "
           f"`{encoder_origin.get('source', 'unknown')}` (SHA-256 {encoder_origin.get('sha256', 'unknown')}): "
           f"{licence}.")
  if work.config.memory_init.word_vectors and work.config.memory_init.kind != "random":
    yield "- The memory started from word vectors of another model, whose licence applies, too."
  if work.config.data.name != default_config().data.name:
    yield "- These weights: as the licence of the training data allows; whoever shares them adds it here."
