"""Trains a small network on random batches over a mesh, and prints metrics and gradients as JSON for test_mesh.py.

    python losses_on_mesh.py STEPS MESH... [--config.field=value]       MESH: sizes of data,fsdp,tensor

With several processes (if the environment of `jax.distributed` is set) a mesh spans the devices of all of them.
With encoder.frozen=true the batches hold features instead of images, and the network has no image encoder.
"""

import json
import math
import os
import sys

import jax
from jax.experimental import multihost_utils
import numpy as np
import optax

B, V, SIZE, T, VOCABULARY, EOS = 16, 2, 32, 8, 40, 2
FIELDS = {
    "encoder.name": "resnet_tiny", "encoder.weights": "", "encoder.frozen": False, "data.image_size": SIZE,
    "data.augment": True, "model.width": 32, "model.feedforward_width": 32, "model.num_heads": 4,
    "model.num_memory_tokens": 2, "model.encoder_layers": 1, "model.decoder_layers": 1, "model.dropout": 0.1,
    "memory.num_heads": 4, "memory.num_slots": 16, "memory.slot_width": 8, "memory.top_k": 4, "tokenizer.max_length": T,
    "train.batch_size": B, "train.num_steps": 1000, "optimizer.warmup_steps": 5, "optimizer.ema_decay": 0.9,
    "decode.batch_size": B}


def make_batch(step: int, frozen: bool) -> dict:
  """Returns a random batch in which each report appears twice and one study is padding."""
  rng = np.random.default_rng(step)
  tokens = rng.integers(4, VOCABULARY, (B, T + 1)).astype(np.int32)
  tokens[:, 0], tokens[B // 2:] = 1, tokens[:B // 2]
  for row, end in enumerate(rng.integers(2, T + 1, B // 2)):
    for twin in (row, row + B // 2):
      tokens[twin, end], tokens[twin, end + 1:] = EOS, 0
  inputs = {"features": rng.normal(size=(B, V, 4, 8)).astype(np.float32)} if frozen else {
      "images": rng.integers(0, 256, (B, V, SIZE, SIZE, 1)).astype(np.uint8)}
  return inputs | {
      "tokens": tokens, "view_mask": rng.random((B, V)) < [1.0, 0.7],
      "view_ids": rng.integers(0, 3, (B, V)).astype(np.int32), "labels": rng.integers(0, 4, (B, 14)).astype(np.int8),
      "record": np.arange(B, dtype=np.int32) + B * step, "epoch": np.zeros(B, np.int32),
      "valid": np.arange(B) != step % B}


def run(mesh_sizes: str, num_steps: int, overrides: list[str]) -> dict:
  """Returns the metrics of all steps, and the clipped gradients of the first step as Adam's first moments."""
  from mcsam_jax import config as configs
  from mcsam_jax.distributed.mesh import local_rows, make_mesh, replicated, shard_batch, state_shardings
  from mcsam_jax.models.initialize import make_model
  from mcsam_jax.training.train_state import init_train_state
  from mcsam_jax.training.train_step import make_train_step
  sizes = [int(size) for size in mesh_sizes.split(",")]
  fields = FIELDS | dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes))
  config = configs.load_config("phantom", [f"--config.{name}={value}" for name, value in fields.items()] + overrides)
  mesh = make_mesh(config, jax.devices()[:math.prod(sizes)][::-1])       # reversed: on TPU the order differs, too
  with jax.set_mesh(mesh):
    model = make_model(config, VOCABULARY, SIZE // 16)
    start = lambda: init_train_state(model, config, make_batch(0, config.encoder.frozen))
    shardings = state_shardings(mesh, jax.eval_shape(start))
    state = jax.jit(start, out_shardings=shardings)()
    rows = local_rows(mesh, B)
    train_step = jax.jit(make_train_step(model, config, EOS), donate_argnums=0,
                         out_shardings=(shardings, replicated(mesh)))
    history, gradient = [], None
    for step in range(num_steps):
      batch = make_batch(step, config.encoder.frozen)
      state, metrics = train_step(state, shard_batch(mesh, {name: array[rows] for name, array in batch.items()}))
      history.append({name: float(value) for name, value in metrics.items()})
      if gradient is None:
        moments = optax.tree.get_all_with_path(state.opt_state, "mu")
        gradient = [multihost_utils.process_allgather(leaf, tiled=True).tolist() for leaf in jax.tree.leaves(
            [moment for _, moment in moments])]
        arrays = jax.tree.leaves((state.params, state.opt_state))
        size_per_device = sum(array.addressable_shards[0].data.size for array in arrays)
        size = sum(array.size for array in arrays)
  return {"metrics": history, "gradient": gradient, "share_per_device": size_per_device / size}


def main():
  if "JAX_COORDINATOR_ADDRESS" in os.environ:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]),
                               int(os.environ["JAX_PROCESS_ID"]))
  arguments = sys.argv[1:]
  overrides = [argument for argument in arguments if argument.startswith("--")]
  num_steps, *meshes = [argument for argument in arguments if not argument.startswith("--")]
  results = {mesh: run(mesh, int(num_steps), overrides) for mesh in meshes}
  if jax.process_index() == 0:
    print(json.dumps(results))


if __name__ == "__main__":
  main()
