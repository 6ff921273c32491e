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
present = images.any((2, 3, 4))                                               # [B, V]
ids, log_probs = search.call(images, present, np.where(present, np.arange(images.shape[1], dtype=np.int32), 0))
for beams, scores in zip(np.asarray(ids), np.asarray(log_probs)):             # [K, T], [K]
  best = beams[0].tolist()
  words = "".join(info["vocabulary"][token] for token in best[:(best + [info["eos_id"]]).index(info["eos_id"])])
  print(f"{scores[0]:.4f} {words.replace('▁', ' ').strip()}")
