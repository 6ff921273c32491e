"""Initial values of the memory slots: topics of the training reports, copied to the slots with some noise.

`make_initial_memory` (a module of its own, with libraries that take long to import) computes them from cleaned training
reports. `save_initial_memory` writes slots.npz, which training and evaluation read, and topics.json, a human-readable
list of the topics.

Shapes: S slots, K topics, D slot width.
"""

import dataclasses
import io
import json
from typing import Any

from etils import epath
import numpy as np

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.untrusted import open_npz

NUM_NEAREST = 10            # words that describe a slot or topic; coherence is computed for these


@dataclasses.dataclass(frozen=True)
class InitialMemory:
  """Initial slots, each described by the words with the highest cosine similarity, in descending order."""
  kind: str                           # topics | kmeans | random
  slots: np.ndarray                   # [S, D] float32; the root mean square of each slot is 1
  slot_words: list[list[str]]         # S x 10
  slot_cosines: np.ndarray            # [S, 10] float32
  slot_topics: np.ndarray             # [S] int32, the topic of each slot
  topic_words: list[list[str]]        # K x 10
  topic_cosines: np.ndarray           # [K, 10] float32
  npmi: np.ndarray                    # [K] float32, coherence of each topic in the training reports

  @property
  def median_npmi(self) -> float:
    return float(np.median(self.npmi))


def save_initial_memory(directory: epath.PathLike, memory: InitialMemory) -> None:
  """Writes topics.json and slots.npz to `directory`, each atomically."""
  directory = epath.Path(directory)
  arrays: dict[str, Any] = {field.name: np.asarray(getattr(memory, field.name)) for field in dataclasses.fields(memory)}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  atomic_write(directory / "topics.json", _format_topics(memory))
  atomic_write(directory / "slots.npz", buffer.getvalue())         # last: if slots.npz exists, both files do


def load_initial_memory(directory: epath.PathLike) -> InitialMemory:
  """Reads the files of `save_initial_memory`.

  Raises:
    UserError: slots.npz is missing or damaged, or its values aren't finite.
  """
  path = epath.Path(directory) / "slots.npz"
  try:
    with open_npz(path) as file:
      arrays = {field.name: file.read(field.name) for field in dataclasses.fields(InitialMemory)}
    _check_arrays(arrays)
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: run `mcsam init-memory` with this workdir first") from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged ({printable(str(error))}): run `mcsam init-memory` again") from error
  return InitialMemory(**{**arrays, "kind": str(arrays["kind"]), "slot_words": arrays["slot_words"].tolist(),
                          "topic_words": arrays["topic_words"].tolist()})


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
  """Raises ValueError unless the arrays have the types and shapes of InitialMemory, and finite values."""
  num_slots, num_topics = (arrays[name].shape[:1] for name in ("slots", "npmi"))
  width, nearest = arrays["slots"].shape[1:], (NUM_NEAREST,)
  expected = {"kind": ("U", ()), "slots": ("f", num_slots + width), "slot_words": ("U", num_slots + nearest),
              "slot_cosines": ("f", num_slots + nearest), "slot_topics": ("i", num_slots),
              "topic_words": ("U", num_topics + nearest), "topic_cosines": ("f", num_topics + nearest),
              "npmi": ("f", num_topics)}
  for name, (kind, shape) in expected.items():
    array = arrays[name]
    if array.dtype.kind != kind or array.shape != shape or len(width) != 1:
      raise ValueError(f"{name} has shape {list(array.shape)} and type {array.dtype}")
    if kind == "f" and not np.isfinite(array).all():
      raise ValueError(f"{name} has values that are NaN or infinite")
  if not num_topics[0] > arrays["slot_topics"].max(initial=0) >= arrays["slot_topics"].min(initial=0) >= 0:
    raise ValueError("slot_topics names topics that don't exist")


def _format_topics(memory: InitialMemory) -> str:
  """Returns the text of topics.json: one line per topic, the most coherent first."""
  num_slots = np.bincount(memory.slot_topics, minlength=len(memory.npmi))
  lines = []
  for topic in np.argsort(-memory.npmi, kind="stable"):
    nearest = zip(memory.topic_words[topic], memory.topic_cosines[topic])
    words = {word: round(float(cosine), 3) for word, cosine in nearest}
    lines.append(json.dumps({"topic": int(topic), "npmi": round(float(memory.npmi[topic]), 3),
                             "num_slots": int(num_slots[topic]), "words": words}))
  topics = ",\n    ".join(lines)
  return (f'{{\n  "kind": "{memory.kind}",\n  "median_npmi": {memory.median_npmi:.3f},\n'
          f'  "topics": [\n    {topics}\n  ]\n}}\n')
