"""Runs an exported beam search with jax and NumPy alone: python examples/run_stablehlo.py EXPORTED images.npy

images.npy: uint8 [B, V, S, S, 1] of `model.preprocess`, the frontal view first, then the lateral; absent ones black.
"""

import json
import pathlib
import sys

import jax.export
import numpy as np

folder, images = pathlib.Path(sys.argv[1]), np.load(sys.argv[2])
info = json.loads((folder / "search.json").read_text(encoding="utf-8"))
search = jax.export.deserialize(bytearray((folder / "search.stablehlo").read_bytes()))
size = len(images) if info["batch_size"] == "any" else info["batch_size"]
for start in range(0, len(images), size):
  studies = images[start:start + size]
  batch = np.resize(studies, (size, *images.shape[1:]))                       # repeats studies up to a fixed size
  present = batch.any((2, 3, 4))                                              # [B, V]
  ids, log_probs = search.call(batch, present, np.where(present, np.arange(images.shape[1], dtype=np.int32), 0))
  for beams, scores, _ in zip(np.asarray(ids), np.asarray(log_probs), studies):          # [K, T], [K]
    best = beams[0].tolist()
    words = "".join(info["vocabulary"][token] for token in best[:(best + [info["eos_id"]]).index(info["eos_id"])])
    print(f"{scores[0]:.4f} {words.replace('▁', ' ').strip()}")
