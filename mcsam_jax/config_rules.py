"""Rules for the values of config fields: allowed words, ranges, and fields that depend on one another."""

from collections.abc import Mapping
import math
from typing import Any

from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import check_form, is_import_name
from mcsam_jax.models.visual_encoders.registry import ENCODERS, find_encoder

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
    "train.objective": ("likelihood", "reward"),
    "train.compute_dtype": ("float32", "bfloat16", "float64"),
    "train.remat": ("none", "layers"),
    "train.best_metric": ("", "token_loss", "BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr", "micro_F1", "macro_F1",
                          "CIDEr_macro_F1"),
    "train.eval_search": ("beam", "mbr"),
    "train.labels": ("records", "rules", "phantom", "chexbert"),
    "reward.labeler": ("phantom", "rules", "chexbert"),
    "decode.search": ("beam", "mbr"),
    "decode.finished_beams": ("separate", "in_place"),
    "decode.utility.labeler": ("phantom", "rules", "chexbert"),
    "eval.labeler": ("phantom", "rules", "chexbert", "none"),
    "eval.chexbert_dtype": ("float32", "bfloat16"),
}
# Fields of CHOICES that may instead name a user's own function or class, as package.module:name.
OPEN_FIELDS = ("encoder.name", "tokenizer.kind", "optimizer.schedule")
AT_LEAST_ONE = (
    "data.num_views", "data.image_size", "tokenizer.threshold", "tokenizer.max_length", "memory.num_slots",
    "memory.slot_width", "memory.num_heads", "memory.top_k", "model.width", "model.num_heads",
    "model.feedforward_width", "model.decoder_layers", "model.num_memory_tokens", "train.batch_size", "train.num_steps",
    "train.grad_accum_steps", "train.log_every", "train.eval_every", "train.keep_last", "train.host_threads",
    "decode.beam_size", "decode.batch_size", "decode.num_samples", "eval.num_permutations")
SEEDS = ("seed", "eval.seed", "data.phantom.seed")
MAX_SEED, MAX_INTEGER = 2 ** 63 - 2, 2 ** 31 - 1         # seed + 1 is a seed, too
NOT_NEGATIVE = (
    *SEEDS, "data.phantom.first_train", "data.short_side", "data.min_words", "encoder.trained_stages",
    "encoder.cached_augmentations", "model.encoder_layers", "model.text_encoder_layers", "model.align_weight",
    "model.findings_weight", "decode.retrieved_candidates", "decode.utility.cider",
    "decode.utility.ngram_overlap", "decode.utility.rouge_l", "decode.utility.rarity_exponent",
    "decode.utility.findings", "decode.utility.finding_threshold", "decode.min_length", "decode.no_repeat_ngram_size",
    "decode.top_k", "prepare.num_workers",
    "prepare.max_corrupt_records", "train.max_corrupt_records", "train.watchdog_timeout_minutes", "train.profile_steps",
    "train.checkpoint_every", "train.eval_studies", "train.patience", "reward.cider", "reward.rouge_l",
    "reward.findings", "reward.cross_entropy_weight", "reward.kl_weight", "optimizer.warmup_steps",
    "optimizer.weight_decay", "optimizer.clip_norm", "train.loss_term_weight")
BELOW_ONE = ("model.dropout", "optimizer.label_smoothing", "optimizer.ema_decay")        # and not negative
# Fields that are empty or name a user's own functions, separated by commas.
OWN_FUNCTIONS = ("train.loss_term", "eval.metrics")
ABOVE_ZERO = ("decode.temperature", "reward.temperature", "model.align_temperature")


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
    if field in OPEN_FIELDS and is_import_name(values[field]):
      check_form(field, values[field])                   # imported only by the command that needs it
    elif values[field] not in choices:
      words = ", ".join(choice or '""' for choice in choices)
      own = ", or package.module:name for one of your own" if field in OPEN_FIELDS else ""
      raise UserError(f"{field}={values[field]}: must be one of {words}{own}")
  for field, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{field}={value}: must be a finite number")
    largest = MAX_SEED if field in SEEDS else MAX_INTEGER
    if isinstance(value, int) and abs(value) > largest:
      raise UserError(f"{field}={value}: must be at most {largest}")
  for field in OWN_FUNCTIONS:
    for name in filter(None, values[field].split(",")):
      check_form(field, name.strip())
  for fields, is_valid, requirement in (
      (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
      (NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
      (BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1"),
      (ABOVE_ZERO, lambda value: value > 0, "above 0"),
      (("data.max_image_pixels",), lambda value: 1 <= value <= 178_956_970, "from 1 to 178956970, Pillow's own limit"),
      (("decode.retrieval_weight", "decode.utility.head_weight", "decode.utility.overlap_recall"),
       lambda value: 0 <= value <= 1, "from 0 to 1"),
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
    divisor = find_encoder(chosen).stride if divisor_field == "encoder.name" else chosen
    if values[field] % divisor:
      raise UserError(f"{field}={values[field]} must be a multiple of {divisor}, because {divisor_field}={chosen}")


def _check_combinations(values: Mapping[str, Any]) -> None:
  if values["train.patience"] and not values["train.best_metric"]:
    raise UserError("train.patience needs train.best_metric, the metric whose improvement it waits for")
  if values["train.objective"] == "reward":
    _check_reward(values)
  _check_encoder(values)
  is_trained = not values["encoder.frozen"] or values["encoder.trained_stages"]
  if values["train.grad_accum_steps"] > 1 and values["encoder.train_batch_norm"] and is_trained:
    raise UserError("train.grad_accum_steps > 1 needs encoder.train_batch_norm=false, because batch norm would use the "
                    "statistics of a microbatch instead of the batch's")
  if values["decode.retrieval_weight"] and not values["model.use_alignment"]:
    raise UserError("decode.retrieval_weight needs the alignment: set it to 0, or set model.use_alignment=true")
  data = values["data.name"]
  if data != "phantom" and values["eval.labeler"] == "phantom":
    raise UserError(f"eval.labeler=phantom reads only phantom reports; for data.name={data} set eval.labeler=rules")
  if values["decode.utility.head_weight"] and not values["model.findings_head"]:
    raise UserError("decode.utility.head_weight needs the findings head: set it to 0, or set model.findings_head=true")
  has_labels = (data == "phantom" or is_import_name(data)
                or data == "r2gen_json"                   # an annotation.json may have them: see check_record_labels
                or data == "mimic_cxr" and values["data.mimic_cxr.labels"] != "none"
                or values["train.labels"] != "records")
  for field, needs_labels, otherwise in (
      ("model.align_targets", values["model.align_targets"] == "label_similarity", "same_text"),
      ("model.findings_head", values["model.findings_head"], "false")):
    if needs_labels and not has_labels:
      raise UserError(f"{field}={values[field]} needs labels, and data.name={data} has none: set train.labels=rules to "
                      f"read them from the reports, or {field}={otherwise}")


def _check_encoder(values: Mapping[str, Any]) -> None:
  """Checks the combinations of `encoder.trained_stages` and `encoder.cached_augmentations`."""
  trained, name = values["encoder.trained_stages"], values["encoder.name"]
  for field, otherwise in (("encoder.trained_stages", "without it, all stages are trained"),
                           ("encoder.cached_augmentations", "a trained encoder gets new augmented images in every "
                            "epoch from data.augment=true")):
    if values[field] and not values["encoder.frozen"]:
      raise UserError(f"{field}={values[field]} needs encoder.frozen=true; {otherwise}")
  if not trained:
    return
  num_stages = len(find_encoder(name).stages)
  if not num_stages:
    raise UserError(f"encoder.trained_stages={trained}: encoder.name={name} has no stages that can be trained alone; "
                    "set it to 0, or set encoder.frozen=false")
  if trained >= num_stages:
    raise UserError(f"encoder.trained_stages={trained} must be below {num_stages}, the stages of encoder.name={name}; "
                    "to train them all, set it to 0 and encoder.frozen=false")


def _check_reward(values: Mapping[str, Any]) -> None:
  """Checks the combinations of `train.objective=reward`."""
  if not values["train.init_from"]:
    raise UserError("train.objective=reward needs train.init_from, the workdir of a trained model to start from")
  if values["reward.num_samples"] < 2:
    raise UserError(f"reward.num_samples={values['reward.num_samples']}: must be at least 2, because each sample is "
                    "compared with the others of its study")
  if not any(values[f"reward.{term}"] for term in ("cider", "rouge_l", "findings")):
    raise UserError("train.objective=reward needs a term with a weight above 0: reward.cider, reward.rouge_l or "
                    "reward.findings")
  if values["train.grad_accum_steps"] > 1:
    raise UserError(f"train.grad_accum_steps={values['train.grad_accum_steps']} must be 1 with train.objective=reward: "
                    "lower train.batch_size or reward.num_samples, or set train.remat=layers, to save memory")
  if values["reward.findings"] and values["reward.labeler"] == "phantom" and values["data.name"] != "phantom":
    raise UserError(f"reward.labeler=phantom reads only phantom reports; for data.name={values['data.name']} set "
                    "reward.labeler=rules")
