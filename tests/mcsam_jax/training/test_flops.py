"""The count of operations against published figures, against XLA's, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.batch import batch_spec
from mcsam_jax import config as configs
from mcsam_jax.models.contrastive import ContrastiveTargets
from mcsam_jax.models.initialize import make_model
from mcsam_jax.training import flops
from mcsam_jax.training.train_state import init_train_state
from mcsam_jax.training.train_step import make_train_step

B, V, GRID, VOCABULARY = 4, 2, 3, 1000


def load(name="phantom", **fields):
  return configs.load_config(name, [f"--config.{field.replace('__', '.')}={value}" for field, value in fields.items()])


@pytest.mark.parametrize("name, billions", [("resnet50", 4.09), ("resnet101", 7.80)])
def test_multiplications_of_resnets_are_those_that_torchvision_publishes(name, billions):
  assert sum(flops.encoder_flops(name, 224)) / 2e9 == pytest.approx(billions, rel=0.002)   # theirs with the classifier


@pytest.mark.parametrize("fields", [
    {"memory__query": "word", "model__align_on": "response"},
    {"memory__query": "word_position", "memory__consolidation": "gate", "model__align_on": "consolidated",
     "model__use_memory_tokens": False, "model__encoder_layers": 2},
], ids=lambda fields: fields["memory__query"])
def test_the_forward_pass_is_what_xla_counts(fields):
  """All slots answer, so that what chooses them isn't in XLA's count; norms and softmax are, with about 1 %."""
  config = load(data__image_size=96, model__width=256, memory__num_slots=512, memory__top_k=512, **fields)
  model = make_model(config, VOCABULARY, GRID)
  words = config.tokenizer.max_length
  batch = [jax.ShapeDtypeStruct((B, *shape), dtype) for shape, dtype in (
      ((V, GRID * GRID, 1280), jnp.float32), ((V,), bool), ((V,), jnp.int32), ((words + 1,), jnp.int32),
      ((words,), bool))]

  targets = ContrastiveTargets.create(np.arange(B)[:, None], np.zeros((B, 14)), np.ones(B, bool))

  def forward(module, *batch):
    outputs = module(*batch, train=False)
    return outputs.logits, module.align(outputs.image_embedding, outputs.report_embedding, targets)

  variables = jax.eval_shape(lambda *batch: model.init(jax.random.key(0), *batch, method=forward), *batch)
  lowered = jax.jit(lambda variables, *batch: model.apply(variables, *batch, method=forward)).lower(variables, *batch)
  counted = sum(flops.forward_flops(config, VOCABULARY, B).values())
  assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)


def test_training_is_three_times_the_forward_pass_but_for_its_first_layer_and_unused_slots():
  frozen, trained = load(), load(encoder__frozen=False)
  for config, first in ((frozen, flops.PATCHES), (trained, flops.FIRST_CONVOLUTION)):
    parts = flops.forward_flops(config, VOCABULARY, B)
    assert parts[flops.UNUSED_SLOTS] > 0
    needed = sum(parts.values()) - parts[flops.UNUSED_SLOTS]
    assert flops.train_flops(config, VOCABULARY, B) == 3 * needed - parts[first]
  convolutions = flops.encoder_flops("efficientnet_lite0", 192)
  assert flops.train_flops(trained, VOCABULARY, B) - flops.train_flops(frozen, VOCABULARY, B) == pytest.approx(
      B * V * (3 * sum(convolutions) - convolutions[0]) + flops.forward_flops(frozen, VOCABULARY, B)[flops.PATCHES])


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_training_step_is_what_xla_counts(frozen):
  """XLA also counts norms, softmax and the optimizer, 1 to 3 % here, and the norms that alignment would have logged."""
  config = load(encoder__name="resnet_tiny", encoder__weights="", encoder__frozen=frozen, data__image_size=96,
                model__width=256, memory__num_slots=512, memory__top_k=512, model__use_alignment=False)
  model, spec = make_model(config, VOCABULARY, 6), batch_spec(config, B, (36, 128) if frozen else None)
  batch = {name: jax.ShapeDtypeStruct(*array) for name, array in spec.items()}
  state = jax.eval_shape(lambda batch: init_train_state(model, config, batch), batch)
  lowered = jax.jit(make_train_step(model, config, 2)).lower(state, batch)
  assert flops.train_flops(config, VOCABULARY, B) == pytest.approx(lowered.cost_analysis()["flops"], rel=0.035)


def test_what_is_done_once_a_step_is_not_done_once_a_study():
  """Slots are projected, and with `memory.query=word` the vocabulary asks, once; codes are compared in pairs."""
  one, two, three = (flops.forward_flops(load(), VOCABULARY, size) for size in (1, 2, 3))
  growth = {part: (two[part] - one[part], three[part] - two[part]) for part in one}
  assert 0 < growth["memory"][0] == growth["memory"][1] < one["memory"]
  assert growth["decoder"] == (one["decoder"], one["decoder"])
  assert growth["alignment"][1] - growth["alignment"][0] == 2 * 2 * load().model.width


def test_mimic_cxr_is_mostly_its_resnet():
  parts = flops.forward_flops(load("mimic_cxr"), 5000, 1)
  images = parts[flops.IMAGE_ENCODER] + parts[flops.FIRST_CONVOLUTION]
  assert images == pytest.approx(2 * 2 * 4.09e9, rel=0.002) and images > sum(parts.values()) / 2
