"""Reference for the input pipeline: PyTorch's DataLoader as R2Gen and R2GenCMN use it (extra `bench`).

Reads JPEG files, decodes them to RGB with Pillow and applies R2Gen's transforms: shorter side to 256, random crop of
224, random flip, conversion to float, normalization. The transforms make the same calls as torchvision does for
Pillow images, so torchvision isn't needed.
"""

from collections.abc import Callable, Iterator
import itertools
import pathlib
import random

import numpy as np
import PIL.Image
import torch

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
RESIZED, CROPPED, WORKERS = 256, 224, 2


class StudyDataset(torch.utils.data.Dataset):
  """Data set of studies given as image files; an element is float32 [V, 3, 224, 224]."""

  def __init__(self, studies: list[list[pathlib.Path]]):
    """Stores the paths of the V images of each study."""
    self.studies = studies

  def __len__(self) -> int:
    return len(self.studies)

  def __getitem__(self, index: int) -> torch.Tensor:
    return torch.stack([transform(PIL.Image.open(path).convert("RGB")) for path in self.studies[index]])


def transform(image: PIL.Image.Image) -> torch.Tensor:
  """Transforms an RGB image to float32 [3, 224, 224]."""
  scale = RESIZED / min(image.size)
  if scale != 1:
    image = image.resize([round(side * scale) for side in image.size], PIL.Image.Resampling.BILINEAR)
  left, top = (random.randint(0, side - CROPPED) for side in image.size)
  image = image.crop((left, top, left + CROPPED, top + CROPPED))
  if random.random() < .5:
    image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
  pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
  return pixels.clone().sub_(MEAN).div_(STD)


def make_data_loader(studies: list[list[bytes]], folder: str, batch_size: int, num_batches: int
                     ) -> Callable[[], Iterator[int]]:
  """Returns a function that loads `num_batches` batches and yields the number of images of each.

  Args:
    studies: JPEGs of each study, the same number for all; they are written to `folder` once.
  """
  paths = []
  for number, images in enumerate(studies):
    paths.append([pathlib.Path(folder, f"{number}_{view}.jpg") for view in range(len(images))])
    for path, jpeg in zip(paths[-1], images, strict=True):
      path.write_bytes(jpeg)
  loader = torch.utils.data.DataLoader(StudyDataset(paths), batch_size, shuffle=True, num_workers=WORKERS)
  return lambda: (batch.shape[0] * batch.shape[1] for batch in itertools.islice(loader, num_batches))
