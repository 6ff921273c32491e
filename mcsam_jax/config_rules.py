"""Rules for the values of config fields: allowed words, ranges, and fields that depend on one another."""

from collections.abc import Mapping
import math
from typing import Any

from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import ENCODERS

CHOICES = {   # fields that take one of a few words
    "data.cleaning": ("iu_xray", "mimic_cxr"),
    "data.dicom_rendering": ("voi", "mimic_cxr_jpg"),
    "data.mimic_cxr.unit": ("study", "image"),
    "data.mimic_cxr.images": ("jpg", "dcm"),
    "data.mimic_cxr.labels": ("chexpert", "negbio", "none"),
    "data.mimic_cxr.required_views": ("any", "frontal", "lateral", "both"),
    "data.mimic_cxr.view_order": ("pa_first", "acquisition"),
    "data.target": ("findings", "impression", "both"),
    "tokenizer.kind": ("word", "sentencepiece"),
    "encoder.name": tuple(ENCODERS),
    "memory.consolidation": ("residual", "gate"),
    "memory.query": ("word_position", "word"),
    "memory_init.kind": ("topics", "kmeans", "random"),
    "model.patch_activation": ("none", "relu"),
    "model.patch_positions": ("learned", "sinusoidal"),
    "model.word_positions": ("learned", "sinusoidal"),
    "model.norm": ("layernorm", "r2gencmn"),
    "model.align_on": ("response", "consolidated"),
    "model.align_targets": ("identity", "same_text", "label_similarity"),
    "optimizer.schedule": ("cosine", "linear", "constant"),
    "train.compute_dtype": ("float32", "bfloat16", "float64"),
    "train.remat": ("none", "layers"),
    "train.best_metric": ("", "token_loss", "BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr", "micro_F1", "macro_F1",
                          "CIDEr_macro_F1"),
    "train.eval_search": ("beam", "mbr"),
    "decode.search": ("beam", "mbr"),
    "decode.finished_beams": ("separate", "in_place"),
    "decode.utility.labeler": ("phantom", "rules", "chexbert"),
    "eval.labeler": ("phantom", "rules", "chexbert", "none"),
    "eval.chexbert_dtype": ("float32", "bfloat16"),
}
AT_LEAST_ONE = (
    "data.num_views", "data.image_size", "tokenizer.threshold", "tokenizer.max_length", "memory.num_slots",
    "memory.slot_width", "memory.num_heads", "memory.top_k", "model.width", "model.num_heads",
    "model.feedforward_width", "model.decoder_layers", "model.num_memory_tokens", "train.batch_size", "train.num_steps",
    "train.grad_accum_steps", "train.log_every", "train.eval_every", "train.keep_last", "train.host_threads",
    "decode.beam_size", "decode.batch_size", "decode.num_samples", "eval.num_permutations")
NOT_NEGATIVE = (
    "seed", "eval.seed", "data.short_side", "data.min_words", "model.encoder_layers", "model.text_encoder_layers",
    "model.align_weight", "decode.retrieved_candidates", "decode.utility.cider", "decode.utility.ngram_overlap",
    "decode.utility.findings", "decode.utility.finding_threshold", "decode.min_length", "decode.no_repeat_ngram_size",
    "decode.top_k", "prepare.num_workers",
    "prepare.max_corrupt_records", "train.max_corrupt_records", "train.watchdog_timeout_minutes", "train.profile_steps",
    "train.checkpoint_every", "train.eval_studies", "optimizer.warmup_steps", "optimizer.weight_decay",
    "optimizer.clip_norm")
BELOW_ONE = ("model.dropout", "optimizer.label_smoothing", "optimizer.ema_decay")        # and not negative
ABOVE_ZERO = ("decode.temperature", "model.align_temperature")


def check_values(values: Mapping[str, Any]) -> None:
  """Checks values that would otherwise fail late, or silently mean something else.

  Args:
    values: all fields of a config with their values, by dotted name.

  Raises:
    UserError: a value is not allowed, or doesn't fit another field.
  """
  _check_single_fields(values)
  _check_sizes(values)
  _check_combinations(values)


def _check_single_fields(values: Mapping[str, Any]) -> None:
  for field, choices in CHOICES.items():
    if values[field] not in choices:
      words = ", ".join(choice or '""' for choice in choices)
      raise UserError(f"{field}={values[field]}: must be one of {words}")
  for field, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{field}={value}: must be a finite number")
  for fields, is_valid, requirement in (
      (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
      (NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
      (BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1"),
      (ABOVE_ZERO, lambda value: value > 0, "above 0"),
      (("data.max_image_pixels",), lambda value: 1 <= value <= 178_956_970, "from 1 to 178956970, Pillow's own limit"),
      (("decode.retrieval_weight",), lambda value: 0 <= value <= 1, "from 0 to 1"),
      (("decode.top_p",), lambda value: 0 < value <= 1, "above 0 and at most 1")):
    for field in fields:
      if not is_valid(values[field]):
        raise UserError(f"{field}={values[field]}: must be {requirement}")


def _check_sizes(values: Mapping[str, Any]) -> None:
  for smaller, larger in (("decode.min_length", "tokenizer.max_length"), ("memory.top_k", "memory.num_slots")):
    if values[smaller] > values[larger]:
      raise UserError(f"{smaller}={values[smaller]} must not exceed {larger}={values[larger]}")
  if values["optimizer.warmup_steps"] >= values["train.num_steps"]:
    raise UserError(f"optimizer.warmup_steps={values['optimizer.warmup_steps']} must be below "
                    f"train.num_steps={values['train.num_steps']}")
  for field, divisor_field in (("model.width", "model.num_heads"), ("model.width", "memory.num_heads"),
                               ("data.image_size", "encoder.name")):
    chosen = values[divisor_field]
    divisor = ENCODERS[chosen].stride if divisor_field == "encoder.name" else chosen
    if values[field] % divisor:
      raise UserError(f"{field}={values[field]} must be a multiple of {divisor}, because {divisor_field}={chosen}")


def _check_combinations(values: Mapping[str, Any]) -> None:
  if values["train.grad_accum_steps"] > 1 and values["encoder.train_batch_norm"] and not values["encoder.frozen"]:
    raise UserError("train.grad_accum_steps > 1 needs encoder.train_batch_norm=false, because batch norm would use the "
                    "statistics of a microbatch instead of the batch's")
  if values["decode.retrieval_weight"] and not values["model.use_alignment"]:
    raise UserError("decode.retrieval_weight needs the alignment: set it to 0, or set model.use_alignment=true")
  data = values["data.name"]
  if data != "phantom" and values["eval.labeler"] == "phantom":
    raise UserError(f"eval.labeler=phantom reads only phantom reports; for data.name={data} set eval.labeler=rules")
  has_labels = data == "phantom" or data == "mimic_cxr" and values["data.mimic_cxr.labels"] != "none"
  if values["model.align_targets"] == "label_similarity" and not has_labels:
    raise UserError(f"model.align_targets=label_similarity needs labels, and data.name={data} has none: choose "
                    "same_text or identity" + (", or set data.mimic_cxr.labels" if data == "mimic_cxr" else ""))
