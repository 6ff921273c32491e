"""Keeps restricted data out of public buckets.

A config sets `data.restricted` for data sets such as MIMIC-CXR, whose terms forbid sharing. Cloud Storage is asked
without credentials, as a stranger would ask, whether a bucket is public, so no permission on the bucket is needed: may
anyone list its objects, and does it grant reading them (`storage.objects.get`) to everyone? This doesn't detect a
bucket that is open to every Google account (allAuthenticatedUsers); the launchers, which read the bucket's policy, do.
Neither detects single objects that are shared by access control lists of their own. Public access prevention rules out
all of these.
"""

from collections.abc import Callable, Iterator
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request

from etils import epath
import jax
from ml_collections import ConfigDict

from mcsam_jax.errors import UserError

API = "https://storage.googleapis.com/storage/v1/b/{}"
LISTING = API + "/o?maxResults=1&fields=kind"
GRANTS = API + "/iam/testPermissions?permissions=storage.objects.get&permissions=storage.objects.list"
ATTEMPTS = 5                        # with pauses of 1, 2, 4 and 8 seconds between them


def check_bucket_private(config: ConfigDict, workdir: epath.PathLike = "",
                         open_url: Callable = urllib.request.urlopen,
                         sleep: Callable[[float], None] = time.sleep) -> None:
  """Raises UserError if a restricted data set would be read from, or written to, a public bucket.

  Checked are the workdir, every gs:// URL in the fields of `data` and `prepare`, and the folder of compiled programs
  (which holds no data, but belongs to the run). For other data sets and for local paths nothing is asked.

  Args:
    config: the whole config.
    workdir: workdir of the run, if there is one.
    open_url: opens a URL like urllib.request.urlopen.
    sleep: waits for that many seconds.

  Raises:
    UserError: a bucket is public; or Cloud Storage didn't answer, and the environment variable MCSAM_PRIVATE_BUCKETS
      (names separated by spaces) doesn't list the bucket.
  """
  if not config.data.restricted:
    return
  trusted = os.environ.get("MCSAM_PRIVATE_BUCKETS", "").split()
  cache = jax.config.jax_compilation_cache_dir or ""  # pyright: ignore[reportAttributeAccessIssue]
  values = [("the workdir", str(workdir)), ("JAX_COMPILATION_CACHE_DIR", cache),
            *_iterate_strings(config.data, "data"), *_iterate_strings(config.prepare, "prepare")]
  sources: dict[str, str] = {}                                # bucket -> the first value that names it
  for source, value in values:
    for bucket in re.findall(r"gs://([^/\s,\"']+)", value):
      sources.setdefault(bucket, source)
  for bucket, source in sources.items():
    try:
      public = is_public(bucket, open_url, sleep)
    except OSError as error:
      if bucket in trusted:
        continue
      raise UserError(f"{source} is on gs://{bucket}, and storage.googleapis.com didn't answer whether that bucket is "
                      f"public ({error}), which the restricted data set {config.data.name} must not allow: try again, "
                      f"or set MCSAM_PRIVATE_BUCKETS={bucket} if you know that it is private") from None
    if public:
      raise UserError(f"{source} is on gs://{bucket}, which everyone can read, but the data set {config.data.name} is "
                      f"restricted: close the bucket with `gcloud storage buckets update gs://{bucket} "
                      "--public-access-prevention`, or use another one")


def is_public(bucket: str, open_url: Callable = urllib.request.urlopen,
              sleep: Callable[[float], None] = time.sleep) -> bool:
  """Returns whether anyone may list or read the objects of a Cloud Storage bucket.

  Raises:
    OSError: there was no usable answer after ATTEMPTS attempts.
  """
  name = urllib.parse.quote(bucket, safe="")
  if _fetch_json(LISTING.format(name), open_url, sleep) is not None:
    return True
  return bool((_fetch_json(GRANTS.format(name), open_url, sleep) or {}).get("permissions"))


def _fetch_json(url: str, open_url: Callable, sleep: Callable[[float], None]) -> dict | None:
  """Returns the JSON at a URL, None if access is denied or the bucket doesn't exist."""
  failure = None
  for attempt in range(ATTEMPTS):
    if attempt:
      sleep(2 ** (attempt - 1))
    try:
      with open_url(url, timeout=20) as response:
        return json.load(response)
    except urllib.error.HTTPError as error:          # is an OSError, so it is handled first
      if error.code in (401, 403, 404):
        return None
      failure = error
    except (OSError, ValueError) as error:           # no network, or a proxy's HTML page instead of JSON
      failure = error
  raise OSError(str(failure))


def _iterate_strings(fields: ConfigDict, name: str) -> Iterator[tuple[str, str]]:
  """Yields the dotted name and value of every string among the fields, at any depth."""
  for key, value in fields.items():
    if isinstance(value, ConfigDict):
      yield from _iterate_strings(value, f"{name}.{key}")
    elif isinstance(value, str):
      yield f"{name}.{key}", value
