"""The peer of the input pipeline: PyTorch's DataLoader, as R2Gen and R2GenCMN feed their training (extra `bench`).

It reads JPEG files, decodes them with Pillow to RGB, and transforms them as R2Gen does: shorter side to 256, random
crop of 224, random flip, to float, normalised. The transforms are what torchvision does with Pillow images, in the
same calls, so that torchvision itself isn't needed.
"""

from collections.abc import Callable
import itertools
import pathlib
import random

import numpy as np
import PIL.Image
import torch

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
RESIZED, CROPPED, WORKERS = 256, 224, 2


class Studies(torch.utils.data.Dataset):
  """Studies as lists of image files; each is float32 [V, 3, 224, 224]."""

  def __init__(self, studies: list[list[pathlib.Path]]):
    self.studies = studies

  def __len__(self) -> int:
    return len(self.studies)

  def __getitem__(self, index: int) -> torch.Tensor:
    return torch.stack([transform(PIL.Image.open(path).convert("RGB")) for path in self.studies[index]])


def transform(image: PIL.Image.Image) -> torch.Tensor:
  """Returns an RGB image as float32 [3, 224, 224]."""
  scale = RESIZED / min(image.size)
  if scale != 1:
    image = image.resize([round(side * scale) for side in image.size], PIL.Image.Resampling.BILINEAR)
  left, top = (random.randint(0, side - CROPPED) for side in image.size)
  image = image.crop((left, top, left + CROPPED, top + CROPPED))
  if random.random() < .5:
    image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
  pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
  return pixels.clone().sub_(MEAN).div_(STD)


def data_loader(studies: list[list[bytes]], folder: str, batch_size: int, num_batches: int) -> Callable[[], int]:
  """Returns a function that loads some batches and returns how many images they show.

  Args:
    studies: the JPEGs of each, the same number of all, written to `folder` once.
  """
  paths = []
  for number, images in enumerate(studies):
    paths.append([pathlib.Path(folder, f"{number}_{view}.jpg") for view in range(len(images))])
    for path, jpeg in zip(paths[-1], images, strict=True):
      path.write_bytes(jpeg)
  loader = torch.utils.data.DataLoader(Studies(paths), batch_size, shuffle=True, num_workers=WORKERS)
  return lambda: sum(batch.shape[0] * batch.shape[1] for batch in itertools.islice(loader, num_batches))
