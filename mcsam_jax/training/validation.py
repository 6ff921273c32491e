"""Evaluates a model on the val split while it trains: loss, scores of generated reports, and samples for TensorBoard.

The loss covers the whole split, the scores the reports of its first `train.eval_studies` studies. TensorBoard also gets
the label scores of each finding and, unless the data set is restricted, the same few studies at every evaluation:
images, reference and generated report.

Shapes: V views.
"""

from collections.abc import Iterator, Mapping, Sequence
import io
from typing import NamedTuple

from clu import metric_writers
import jax
from ml_collections import ConfigDict
import numpy as np
import PIL.Image

from input_pipeline.pipeline import eval_batches
from input_pipeline.splits import Split
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.distributed.mesh import decode_batch_size, local_rows, replicated, shard_batches
from mcsam_jax.distributed.preemption import PreemptionGuard, VOTE_LAG
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.errors import UserError
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.registry import get_true_labels, make_labeler
from mcsam_jax.metrics.auc import compute_mean_auc
from mcsam_jax.metrics.clinical_f1 import compute_clinical_f1
from mcsam_jax.metrics.nlg import compute_nlg
from mcsam_jax.metrics.protocols import apply_protocol
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.train_step import make_eval_step

METRICS = ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr")     # no METEOR: it needs Java, which the hosts of a pod may lack
NUM_SAMPLES = 4                                        # studies shown in TensorBoard
IMAGE_SIZE = 256                                       # pixels per side of the images in TensorBoard


def check_best_metric(config: ConfigDict) -> None:
  """Raises UserError if `train.best_metric` needs a labeler and `eval.labeler` is none."""
  if config.train.best_metric.endswith("_F1") and config.eval.labeler == "none":
    raise UserError(f"train.best_metric={config.train.best_metric} needs labels of the generated reports, but "
                    "eval.labeler=none: set another labeler, or train.best_metric=CIDEr")


class EvalResult(NamedTuple):
  """Result of one evaluation on the val split.

  Attributes:
    scores: token_loss, METRICS and distinct_reports; with a labeler also micro_F1, macro_F1 and CIDEr_macro_F1; with a
      findings head also findings_AUC, the mean over the abnormal findings that are frequent enough.
    texts: Markdown by TensorBoard tag.
    images: uint8 [V, IMAGE_SIZE, IMAGE_SIZE, 1] by TensorBoard tag.
  """
  scores: dict[str, float]
  texts: dict[str, str]
  images: dict[str, np.ndarray]

  def write(self, writer: metric_writers.MetricWriter, step: int) -> None:
    """Writes everything to TensorBoard."""
    writer.write_scalars(step, {f"val/{name}": value for name, value in self.scores.items()})
    if self.texts:
      writer.write_texts(step, {f"val/{name}": text for name, text in self.texts.items()})
    if self.images:
      writer.write_images(step, {f"val/{name}": images for name, images in self.images.items()})


class Validation:
  """Evaluates variables on the val split; compiled once. All hosts make the same calls."""

  def __init__(self, model: MCSAM, config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh, split: Split,
               features: np.ndarray | None, train_reports: Sequence[str], stop: PreemptionGuard, watchdog: Watchdog):
    """Builds the jitted functions; they are compiled at the first call.

    Args:
      features: cached features of the split; None if the encoder is trained.
      train_reports: training reports for `train.eval_search=mbr`, else empty.
    """
    self.config, self.tokenizer, self.mesh, self.split, self.features = config, tokenizer, mesh, split, features
    self.stop, self.watchdog = stop, watchdog
    self.eval_step = jax.jit(make_eval_step(model, config, tokenizer.eos_id), out_shardings=replicated(mesh))
    self.generate = ReportGenerator([model], config, tokenizer, mesh, config.train.eval_search, train_reports)
    self.labeler = make_labeler(config, mesh)

  def __call__(self, variables: dict) -> EvalResult:
    """Returns the loss and the scores of these variables.

    Raises:
      Preempted: a host was asked to stop during the evaluation.
    """
    batches = self.stop.check_before_each(shard_batches(self.mesh, self.make_batches("val loss")), lag=VOTE_LAG)
    sums = [self.eval_step(variables, batch) for batch in batches]
    loss, num_tokens = np.sum(jax.device_get(sums), axis=0)
    reports = self.generate([variables], self.stop.check_before_each(
        self.make_batches("generating val reports", self.config.train.eval_studies)))
    self.stop.check()

    references, hypotheses = apply_protocol(
        "r2gen", [self.split.reports[report.record] for report in reports], [report.text for report in reports],
        self.tokenizer, self.config.data.cleaning, self.config.tokenizer.max_length)
    scores = {"token_loss": float(loss / num_tokens), **compute_nlg(references, hypotheses, metrics=METRICS).corpus,
              "distinct_reports": len(set(hypotheses))}
    texts = {}
    if self.labeler:
      self.watchdog.beat("labeling val reports")
      reference_labels = self.label_references(self.labeler, reports)
      labels = compute_clinical_f1(reference_labels, self.labeler.label([report.text for report in reports]),
                                   self.labeler.findings)
      scores |= {"micro_F1": labels["micro"]["f1"], "macro_F1": labels["macro"]["f1"],
                 "CIDEr_macro_F1": (scores["CIDEr"] + labels["macro"]["f1"]) / 2}
      head_probs = [report.head_probs for report in reports if report.head_probs is not None]
      if head_probs and (auc := compute_mean_auc(reference_labels, head_probs)) is not None:
        scores["findings_AUC"] = auc
      texts["findings"] = format_findings_table(labels["per_finding"])
    images = {}
    if not self.config.data.restricted and jax.process_index() == 0:
      samples = select_samples(reports)
      texts["reports"] = "\n\n---\n\n".join(format_sample(self.split, report) for report in samples)
      images = {f"images_{number}": read_views(self.split[report.record]) for number, report in enumerate(samples, 1)}
    return EvalResult(scores, texts, images)

  def label_references(self, labeler: Labeler, reports: Sequence[GeneratedReport]) -> list[Mapping[str, str]]:
    """Returns the reference labels of the reports' studies.

    They are the true labels if the data set has them (phantoms), else those that the labeler reads from the references.
    """
    true_labels = get_true_labels(labeler, self.config, self.split)
    if true_labels is not None:
      return [true_labels[report.record] for report in reports]
    return labeler.label([self.split.reports[report.record] for report in reports])

  def make_batches(self, phase: str, num_studies: int = 0) -> Iterator[dict]:
    """Yields this host's rows of the batches of val.

    Args:
      phase: what the watchdog reports if an evaluation hangs.
      num_studies: only the first so many; 0: all.
    """
    size = decode_batch_size(self.config, self.mesh.shape)
    batches = eval_batches(self.split, self.tokenizer, self.config, size, self.features, num_studies,
                           local_rows(self.mesh, size))
    return self.watchdog.beat_each(batches, phase)


def select_samples(reports: Sequence[GeneratedReport]) -> list[GeneratedReport]:
  """Returns NUM_SAMPLES reports at equal distances, hence the same studies at every evaluation."""
  indices = np.linspace(0, len(reports) - 1, min(NUM_SAMPLES, len(reports))).round().astype(int)
  return [reports[index] for index in indices]


def format_sample(split: Split, report: GeneratedReport) -> str:
  """Returns the reference and the generated report of one study, in Markdown."""
  origin = "retrieved from training" if report.log_prob is None else f"log-probability {report.log_prob:.1f}"
  return f"**Reference** {split.reports[report.record]}\n\n**Generated** {report.text}\n\n{origin}"


def read_views(record: Mapping) -> np.ndarray:
  """Returns the images of a record resized to uint8 [V, IMAGE_SIZE, IMAGE_SIZE, 1]."""
  views = [PIL.Image.open(io.BytesIO(image)).convert("L").resize((IMAGE_SIZE, IMAGE_SIZE))
           for image in record["images"]]
  return np.stack([np.asarray(view) for view in views])[..., None]


def format_findings_table(per_finding: Mapping[str, Mapping[str, float]]) -> str:
  """Returns the label scores of each finding as a Markdown table."""
  rows = [f"| {finding} | {row['support']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} |"
          for finding, row in per_finding.items()]
  return "\n".join(["| finding | in references | precision | recall | F1 |", "| --- | --- | --- | --- | --- |", *rows])
