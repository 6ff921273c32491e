"""The operation counts agree with published figures, with XLA's cost analysis, and with counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.batch import batch_spec
from mcsam_jax import config as configs
from mcsam_jax.models.contrastive import ContrastiveTargets
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.densenet import DenseNet
from mcsam_jax.models.visual_encoders.dinov2 import DinoV2
from mcsam_jax.models.visual_encoders.encoder_flops import _add_densenet, _add_dinov2, _Stack, count_encoder_flops
from mcsam_jax.training import flops
from mcsam_jax.training.train_state import init_train_state
from mcsam_jax.training.train_step import make_train_step

B, V, GRID, VOCAB_SIZE = 4, 2, 3, 1000


def load(name="phantom", **fields):
  return configs.load_config(name, [f"--config.{field.replace('__', '.')}={value}" for field, value in fields.items()])


@pytest.mark.parametrize("name, billions", [
    ("resnet50", 4.09), ("resnet101", 7.80), ("densenet121", 2.834 - 0.079)])       # two input channels less
def test_multiplications_agree_with_torchvision(name, billions):
  # torchvision counts the classifier, too
  assert sum(count_encoder_flops(name, 224)) / 2e9 == pytest.approx(billions, rel=0.002)


@pytest.mark.parametrize("encoder, count, rel", [
    (DenseNet((1, 2)), _add_densenet, 0.01),
    (DinoV2(384, 2, 6), _add_dinov2, 0.03)], ids=["densenet", "dinov2"])
def test_encoder_flops_agree_with_xla(encoder, count, rel):
  """XLA also counts norms and activations, but no products with padding."""
  channels = 1 if isinstance(encoder, DenseNet) else 3
  stack = _Stack(224, channels)
  count(stack, encoder)
  image = jax.ShapeDtypeStruct((1, 224, 224, channels), jnp.float32)
  lowered = jax.jit(encoder.apply).lower(jax.eval_shape(encoder.init, jax.random.key(0), image), image)
  assert sum(stack.flops) == pytest.approx(lowered.cost_analysis()["flops"], rel=rel)


@pytest.mark.parametrize("fields", [
    {"memory__query": "word", "model__align_on": "response", "model__findings_head": True},
    {"memory__query": "word_position", "memory__consolidation": "gate", "model__align_on": "consolidated",
     "model__use_memory_tokens": False, "model__encoder_layers": 2, "model__findings_head": False},
], ids=lambda fields: fields["memory__query"])
def test_forward_flops_agree_with_xla(fields):
  """All slots are selected, so XLA counts no top-k; norms and softmax, which it does count, are about 1 %."""
  config = load(data__image_size=96, model__width=256, memory__num_slots=512, memory__top_k=512, **fields)
  model = make_model(config, VOCAB_SIZE, GRID)
  num_tokens = config.tokenizer.max_length
  batch = [jax.ShapeDtypeStruct((B, *shape), dtype) for shape, dtype in (
      ((V, GRID * GRID, 1280), jnp.float32), ((V,), bool), ((V,), jnp.int32), ((num_tokens + 1,), jnp.int32),
      ((num_tokens,), bool))]

  targets = ContrastiveTargets.create(np.arange(B)[:, None], np.zeros((B, 14)), np.ones(B, bool))

  def forward(module, *batch):
    outputs = module(*batch, train=False)
    return outputs.logits, module.align(outputs.image_embedding, outputs.report_embedding, targets)

  variables = jax.eval_shape(lambda *batch: model.init(jax.random.key(0), *batch, method=forward), *batch)
  lowered = jax.jit(lambda variables, *batch: model.apply(variables, *batch, method=forward)).lower(variables, *batch)
  counted = sum(flops.forward_flops(config, VOCAB_SIZE, B).values())
  assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.02)


def test_training_costs_three_forward_passes_except_for_the_first_layer_and_unused_slots():
  frozen, trained = load(), load(encoder__frozen=False)
  for config, first_layer in ((frozen, flops.PATCHES), (trained, flops.FIRST_CONVOLUTION)):
    parts = flops.forward_flops(config, VOCAB_SIZE, B)
    assert parts[flops.UNUSED_SLOTS] > 0
    needed = sum(parts.values()) - parts[flops.UNUSED_SLOTS]
    assert flops.train_flops(config, VOCAB_SIZE, B) == 3 * needed - parts[first_layer]
  first, rest = count_encoder_flops("efficientnet_lite0", 192)
  assert flops.train_flops(trained, VOCAB_SIZE, B) - flops.train_flops(frozen, VOCAB_SIZE, B) == pytest.approx(
      B * V * (2 * first + 3 * rest) + flops.forward_flops(frozen, VOCAB_SIZE, B)[flops.PATCHES])


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_train_flops_agree_with_xla(frozen):
  """XLA also counts norms, softmax and the optimizer, which are 1 to 3 % here."""
  config = load(encoder__name="resnet_tiny", encoder__weights="", encoder__frozen=frozen, data__image_size=96,
                model__width=256, memory__num_slots=512, memory__top_k=512, model__use_alignment=False)
  model, spec = make_model(config, VOCAB_SIZE, 6), batch_spec(config, B, (36, 128) if frozen else None)
  batch = {name: jax.ShapeDtypeStruct(*array) for name, array in spec.items()}
  state = jax.eval_shape(lambda batch: init_train_state(model, config, batch), batch)
  lowered = jax.jit(make_train_step(model, config, 2)).lower(state, batch)
  assert flops.train_flops(config, VOCAB_SIZE, B) == pytest.approx(lowered.cost_analysis()["flops"], rel=0.035)


def test_costs_per_step_do_not_grow_with_the_batch():
  """Slots are projected, and with `memory.query=word` the vocabulary queries the memory, once per step.

  Embeddings are compared in pairs, so the cost of the alignment grows quadratically.
  """
  one, two, three = (flops.forward_flops(load(), VOCAB_SIZE, size) for size in (1, 2, 3))
  growth = {part: (two[part] - one[part], three[part] - two[part]) for part in one}
  assert 0 < growth["memory"][0] == growth["memory"][1] < one["memory"]
  assert growth["decoder"] == (one["decoder"], one["decoder"])
  assert growth["alignment"][1] - growth["alignment"][0] == 2 * 2 * load().model.width


def test_most_operations_of_mimic_cxr_are_in_its_resnet():
  parts = flops.forward_flops(load("mimic_cxr"), 5000, 1)
  images = parts[flops.IMAGE_ENCODER] + parts[flops.FIRST_CONVOLUTION]
  assert images == pytest.approx(2 * 2 * 4.09e9, rel=0.002) and images > sum(parts.values()) / 2


@pytest.mark.parametrize("frozen", [True, False])
def test_operations_of_reward_fine_tuning_by_hand(frozen):
  """Another sample per study is decoded once and trained on, which is three times a forward pass of its decoder."""
  def count(**fields):
    return flops.reward_flops(load(train__init_from="w", train__objective="reward", encoder__frozen=frozen, **fields),
                              VOCAB_SIZE)

  config = load(encoder__frozen=frozen)
  parts = flops.forward_flops(config, VOCAB_SIZE, config.train.batch_size)
  num_patches, width = 2 * 6 * 6, config.model.width
  patch_kv = config.train.batch_size * config.model.decoder_layers * num_patches * 2 * 2 * width ** 2
  two, three = (count(reward__num_samples=number) for number in (2, 3))
  assert three - two == pytest.approx(4 * (parts["decoder"] + parts["logits"] - patch_kv))
  assert two > flops.train_flops(config, VOCAB_SIZE)
  encoder = sum(parts.get(part, 0) for part in (flops.IMAGE_ENCODER, flops.FIRST_CONVOLUTION))
  with_start_model = count(reward__num_samples=2, reward__kl_weight=0.1)
  encoding = encoder + parts["patches"] + parts["memory"] + parts["encoder"]
  assert with_start_model - two == pytest.approx(encoding + 2 * (parts["decoder"] + parts["logits"]) - patch_kv)
