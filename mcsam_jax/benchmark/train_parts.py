"""The parts of a training step as programs of their own, to time them one by one.

A part's inputs are random arrays of the right shapes. Its forward pass is one program; a second one computes the
gradients of half the sum of its squared outputs, with respect to the part's parameters and inputs, and hence runs both
passes: the backward pass is the difference of the two times. XLA compiles each part alone, so the sum of the parts is
close to the whole step but not equal to it: embeddings, losses and the findings head are in no part, and work that XLA
fuses across parts is counted on one side. With `train.grad_accum_steps` a part is that of one microbatch.

  augmentation   crops, rotations, brightness and normalization of the images
  image_encoder  features of the normalized images, or of the outputs of frozen stages
  patches        projection, positions and transformer layers over the patches
  memory         keys and values of the slots; queries of patches, words and, with alignment, states of the text encoder
  alignment      text encoder, both projection heads, contrastive loss
  decoder        decoder layers, logits and their cross-entropy
  optimizer      update of all parameters

Shapes: B studies, V views, N = V * P patches of a study, C channels, T tokens, D width.
"""

from collections.abc import Callable
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax import partitioning
from mcsam_jax.models.augment import augment_batch
from mcsam_jax.models.inputs import contrastive_targets, token_mask, visual_inputs
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.models.visual_encoders.registry import find_encoder, has_trained_encoder
from mcsam_jax.training.flops import FIRST_CONVOLUTION, forward_flops, IMAGE_ENCODER, PATCHES
from mcsam_jax.training.losses import token_losses
from mcsam_jax.training.train_state import TrainState
from mcsam_jax.training.train_step import apply_gradient

Function = Callable[[MCSAM, Any, dict], Any]      # (bound module, inputs, batch) -> outputs


class Runner(Protocol):
  """What is needed of a `TrainStepRunner`."""
  model: MCSAM
  batch: dict[str, jax.Array]
  state: TrainState
  shardings: Any


def make_parts(config: ConfigDict, eos_id: int, runner: Runner) -> dict[str, Callable[[], Any]]:
  """Returns blocking functions by name, "part: direction"; a backward function runs the forward pass as well."""
  batch = {name: rows[:rows.shape[0] // config.train.grad_accum_steps] for name, rows in runner.batch.items()}
  programs: dict[str, Callable[[], Any]] = {}
  if "images" in batch:
    augment = jax.jit(lambda batch: visual_inputs(config, augment_batch(config, batch))[0])
    programs["augmentation: forward"] = lambda: jax.block_until_ready(augment(batch))
  if has_trained_encoder(config):
    images = jax.jit(lambda batch: partitioning.shard_batch(visual_inputs(config, batch)[0]))(batch)
    programs |= _make_programs("image_encoder", ("visual_encoder",), _extract_features, images, batch, runner,
                               inputs_need_gradient=False)
  activations = jax.jit(functools.partial(_draw_activations, config))(batch)
  for name, scopes, function, inputs in (
      ("patches", ("patch_projection", "row_embedding", "column_embedding", "view_embedding", "patch_encoder"),
       _encode_patches, ("features",)),
      ("memory", ("memory_bank", "token_embedding"), _query_memory, ("patches", "words", "states")),
      ("alignment", ("text_encoder", "image_head", "report_head", "alignment", "token_embedding"),
       functools.partial(_align, eos_id), ("patches", "states")),
      ("decoder", ("decoder",), _decode, ("words", "patches"))):
    if name == "memory" and not config.model.use_memory or name == "alignment" and not config.model.use_alignment:
      continue
    programs |= _make_programs(name, scopes, function, {key: activations[key] for key in inputs}, batch, runner)
  programs["optimizer: forward"] = _make_optimizer_program(config, runner)
  return programs


def count_part_flops(config: ConfigDict, vocab_size: int) -> dict[str, float]:
  """Returns the operations of the forward pass of each part that multiplies matrices, for one microbatch."""
  flops = forward_flops(config, vocab_size, config.train.batch_size // config.train.grad_accum_steps)
  parts = {"image_encoder": (FIRST_CONVOLUTION, IMAGE_ENCODER), "patches": (PATCHES, "encoder"),
           "memory": ("memory",), "alignment": ("text encoder", "alignment"), "decoder": ("decoder", "logits")}
  return {part: total for part, names in parts.items()
          if (total := sum(flops.get(name, 0.0) for name in names)) == total}            # NaN if unknown


def _make_programs(name: str, scopes: tuple[str, ...], function: Function, inputs: Any, batch: dict, runner: Runner,
                   inputs_need_gradient: bool = True) -> dict[str, Callable[[], Any]]:
  """Returns the programs of the forward pass and of both passes of a part.

  Args:
    scopes: names of the submodules whose parameters belong to the part.
    function: called with the module, `inputs` and `batch`.
    inputs_need_gradient: False for the first trained layers.
  """
  model = runner.model

  def forward(params, inputs, state: TrainState, batch):
    variables = {"params": params, "batch_stats": state.batch_stats}
    outputs, _ = model.apply(variables, inputs, batch, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"],
                             method=function)
    return outputs

  def select(state: TrainState):
    params = partitioning.gather_params(state.params)
    own = {scope: params[scope] for scope in scopes if scope in params}
    return own, {scope: params[scope] for scope in params if scope not in own}

  @jax.jit
  def run_forward(state, inputs, batch):
    return forward(partitioning.gather_params(state.params), inputs, state, batch)

  @jax.jit
  def run_both(state, inputs, batch):
    own, others = select(state)

    def loss(own, inputs):
      outputs = forward(others | own, inputs, state, batch)
      return sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(outputs)) / 2

    if not inputs_need_gradient:
      return partitioning.shard_params(jax.grad(loss)(own, inputs))
    gradient, input_gradient = jax.grad(loss, (0, 1))(own, inputs)
    return partitioning.shard_params(gradient), input_gradient

  return {f"{name}: forward": lambda: jax.block_until_ready(run_forward(runner.state, inputs, batch)),
          f"{name}: backward": lambda: jax.block_until_ready(run_both(runner.state, inputs, batch))}


def _make_optimizer_program(config: ConfigDict, runner: Runner) -> Callable[[], Any]:
  """Returns a program that updates the runner's state with a constant gradient."""
  gradient = jax.jit(lambda params: jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), params),
                     out_shardings=runner.shardings.params)(runner.state.params)
  update = jax.jit(lambda state, gradient: apply_gradient(config, state, gradient, state.batch_stats),
                   donate_argnums=0, out_shardings=runner.shardings)

  def run() -> None:
    runner.state = jax.block_until_ready(update(runner.state, gradient))

  return run


def _draw_activations(config: ConfigDict, batch: dict) -> dict[str, jax.Array]:
  """Returns random features [B, V, P, C], patches [B, N, D], and words and states of the text encoder [B, T, D]."""
  encoder, size, dtype = find_encoder(config.encoder.name), batch["valid"].shape[0], config.train.compute_dtype
  num_views, width = config.data.num_views, config.model.width
  patches = (config.data.image_size // encoder.stride) ** 2
  shapes = {"features": (size, num_views, patches, encoder.channels), "patches": (size, num_views * patches, width),
            "words": (size, config.tokenizer.max_length, width), "states": (size, config.tokenizer.max_length, width)}
  return {name: partitioning.shard_batch(jax.random.normal(jax.random.key(number), shape, dtype))
          for number, (name, shape) in enumerate(shapes.items())}


# Functions of the network's module, as `apply(method=...)` calls them.

def _extract_features(module: MCSAM, images: jax.Array, batch: dict) -> jax.Array:
  return module.extract_features(images, True)


def _encode_patches(module: MCSAM, inputs: dict, batch: dict) -> jax.Array:
  patches = module.embed_patches(inputs["features"], batch["view_mask"], batch["view_ids"], True)
  return module.patch_encoder(patches, jnp.ones(patches.shape[:2], bool), True)


def _query_memory(module: MCSAM, inputs: dict, batch: dict) -> list[jax.Array]:
  memory = module.project_memory()
  consolidated, retrieved = module.query_memory(inputs["patches"], memory, True)
  outputs = [consolidated]
  if module.config.memory.query == "word":
    responses = module.vocabulary_responses(memory, True)
    assert responses is not None
    outputs.append(module.memory_bank.consolidate(inputs["words"], jnp.take(responses, batch["tokens"][:, :-1], 0)))
  else:
    outputs.append(module.query_memory(inputs["words"], memory, True)[0])
  if module.config.model.use_alignment:
    outputs += [retrieved, module.query_memory(inputs["states"], memory, True)[1]]
  return outputs


def _align(eos_id: int, module: MCSAM, inputs: dict, batch: dict) -> list[jax.Array]:
  tokens, mask = batch["tokens"][:, 1:], token_mask(batch["tokens"], eos_id)
  states = module.text_encoder(module.scaled_embedding(tokens), mask, True)
  image_embedding = module.image_head(inputs["patches"], jnp.ones(inputs["patches"].shape[:2], bool))
  report_embedding = module.report_head(inputs["states"] + states, mask)
  return [module.align(image_embedding, report_embedding, contrastive_targets(batch, eos_id)).loss]


def _decode(module: MCSAM, inputs: dict, batch: dict) -> jax.Array:
  mask = jnp.ones(inputs["patches"].shape[:2], bool)
  logits = module.decoder(inputs["words"], inputs["patches"], mask, None, True)
  return token_losses(logits, batch["tokens"][:, 1:], 0.0)
