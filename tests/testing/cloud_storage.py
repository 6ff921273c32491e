"""A fake of Cloud Storage in memory, over HTTP: the part of its JSON and XML APIs that libraries use for a run.

Libraries connect to storage.googleapis.com and www.googleapis.com over TLS. A process with the variables of
`CloudStorage.environment` connects to the fake instead: the fake is also its HTTPS proxy, and the process trusts the
certificate authority of the fake.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import collections
import contextlib
import http.server
import json
import pathlib
import re
import socketserver
import ssl
import threading
import time
import urllib.parse

import trustme

HOSTS = ("storage.googleapis.com", "www.googleapis.com", "oauth2.googleapis.com")


class CloudStorage:
  """The state of the fake: all buckets exist, and none is public.

  Attributes:
    objects: (bucket, name) -> Object.
    request_counts: number of requests by handler name, and of errors by status.
    uploads: id -> [bucket, name, query, content so far] of each resumable upload.
    unknown_requests: requests that the fake doesn't implement.
    is_busy: a function of (method, path) that decides whether a request gets status 503.
  """

  def __init__(self, folder: pathlib.Path):
    """Creates empty storage.

    Args:
      folder: folder for the certificate of the authority.
    """
    self.objects, self.request_counts, self.unknown_requests = {}, collections.Counter(), []
    self.is_busy = lambda method, path: False
    self.lock, self._generation, self.uploads = threading.RLock(), 1_700_000_000_000_000, {}
    authority = trustme.CA()
    self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(self.context)
    self._authority = folder / "authority.pem"
    authority.cert_pem.write_to_path(self._authority)

  @contextlib.contextmanager
  def serving(self):
    """Serves requests inside the context."""
    handler = type("Handler", (_Handler,), {"storage": self})
    with _Server(("127.0.0.1", 0), handler) as server:
      self.address = f"127.0.0.1:{server.server_address[1]}"
      threading.Thread(target=server.serve_forever, daemon=True).start()
      try:
        yield self
      finally:
        server.shutdown()

  @property
  def environment(self) -> dict[str, str]:
    """Environment variables that redirect TensorFlow, TensorStore, google-cloud-cpp (ArrayRecord) and urllib."""
    names = "CURL_CA_BUNDLE", "SSL_CERT_FILE", "TENSORSTORE_CA_BUNDLE", "REQUESTS_CA_BUNDLE"
    return {name: str(self._authority) for name in names} | {
        "https_proxy": f"http://{self.address}", "no_proxy": "127.0.0.1,localhost",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token", "NO_GCE_CHECK": "true",
        "STORAGE_EMULATOR_HOST": f"http://{self.address}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://{self.address}",
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://{self.address}"}

  def list_names(self, bucket: str, prefix: str = "") -> list[str]:
    with self.lock:
      return sorted(name for owner, name in self.objects if owner == bucket and name.startswith(prefix))

  def put(self, bucket: str, name: str, content: bytes) -> "Object":
    with self.lock:
      self._generation += 1
      self.objects[bucket, name] = Object(bucket, name, content, self._generation)
      return self.objects[bucket, name]

  def begin_upload(self, bucket: str, name: str, query: dict) -> str:
    with self.lock:
      self._generation += 1
      self.uploads[str(self._generation)] = [bucket, name, query, bytearray()]
      return str(self._generation)


class Object:
  """One generation of an object, which is never changed."""

  def __init__(self, bucket: str, name: str, content: bytes, generation: int):
    self.bucket, self.name, self.content, self.generation = bucket, name, content, generation
    self.updated = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())

  def to_json(self) -> dict:
    return {"kind": "storage#object", "id": f"{self.bucket}/{self.name}/{self.generation}", "bucket": self.bucket,
            "name": self.name, "size": str(len(self.content)), "generation": str(self.generation),
            "metageneration": "1", "updated": self.updated, "timeCreated": self.updated, "etag": str(self.generation),
            "storageClass": "STANDARD", "contentType": "application/octet-stream"}


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
  daemon_threads, request_queue_size = True, 128

  def handle_error(self, request, client_address):
    """Ignores broken connections: clients close them when they have what they need, or are killed."""


class _ErrorStatus(Exception):
  """Makes the handler answer with an error status."""

  def __init__(self, status: int, reason: str = ""):
    super().__init__(reason)
    self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version, storage = "HTTP/1.1", None
  disable_nagle_algorithm = True

  def log_message(self, *arguments):
    pass

  def do_CONNECT(self):
    self.send_response(200, "Connection established")
    self.end_headers()
    self.connection = self.storage.context.wrap_socket(self.connection, server_side=True)
    self.rfile, self.wfile = self.connection.makefile("rb"), socketserver._SocketWriter(self.connection)
    self.close_connection = False

  def do_GET(self):
    self.handle_request()

  do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

  def handle_request(self):
    url = urllib.parse.urlsplit(self.path)
    self.query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
    body = self.read_body()
    try:
      if self.storage.is_busy(self.command, url.path):
        raise _ErrorStatus(503, "busy")
      for method, pattern, handle in ROUTES:
        match = re.fullmatch(pattern, url.path)
        if method == self.command and match:
          self.storage.request_counts[handle.__name__] += 1
          with self.storage.lock:
            return handle(self, *map(urllib.parse.unquote, match.groups()), body=body)
      self.storage.unknown_requests.append(f"{self.command} {self.path}")
      raise _ErrorStatus(404, "no such request")
    except _ErrorStatus as error:
      self.storage.request_counts[error.status] += 1
      self.send({"error": {"code": error.status, "message": str(error)}} if error.status != 304 else b"", error.status)

  def read_body(self) -> bytes:
    if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    parts = []
    while size := int(self.rfile.readline().split(b";")[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(parts)

  def send(self, content: bytes | dict, status: int = 200, **headers: str):
    if isinstance(content, dict):
      content, headers = json.dumps(content).encode(), headers | {"Content-Type": "application/json"}
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    if status != 304:
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD" and status != 304:
      self.wfile.write(content)

  # One method per route.

  def find_object(self, bucket: str, name: str) -> Object:
    item = self.storage.objects.get((bucket, name))
    self.check_preconditions(item, self.query)
    if item is None:
      raise _ErrorStatus(404, f"no such object: {bucket}/{name}")
    return item

  def check_preconditions(self, item: Object | None, query: dict):
    generation = str(item.generation) if item else "0"
    if query.get("ifGenerationMatch", generation) != generation:
      raise _ErrorStatus(412, "another generation")
    if query.get("ifGenerationNotMatch") == generation and item:
      raise _ErrorStatus(304)

  def get_bucket(self, bucket, body):
    self.send({"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US", "storageClass": "STANDARD",
               "metageneration": "1"})

  def get_layout(self, bucket, body):
    self.send({"kind": "storage#storageLayout", "bucket": bucket, "location": "US",
               "hierarchicalNamespace": {"enabled": False}})

  def get_permissions(self, bucket, body):
    self.send({"kind": "storage#testIamPermissionsResponse"})

  def list_objects(self, bucket, body):
    if "Authorization" not in self.headers and self.query.get("fields") == "kind":
      raise _ErrorStatus(401, "no credentials")
    prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
    first, last = self.query.get("startOffset", ""), self.query.get("endOffset")
    rows = []                                       # (name, is_folder) in the order of names
    for name in self.storage.list_names(bucket, prefix):
      if name < first or (last and name >= last):
        continue
      inner, cut, _ = name[len(prefix):].partition(delimiter) if delimiter else (name, "", "")
      row = (prefix + inner + delimiter, True) if cut else (name, False)
      if row not in rows[-1:]:
        rows.append(row)
    start, max_results = int(self.query.get("pageToken", 0)), int(self.query.get("maxResults", 1000))
    page = rows[start:start + max_results]
    content = {"kind": "storage#objects", "prefixes": [name for name, is_folder in page if is_folder],
               "items": [self.storage.objects[bucket, name].to_json() for name, is_folder in page if not is_folder]}
    if start + max_results < len(rows):
      content["nextPageToken"] = str(start + max_results)
    self.send({key: value for key, value in content.items() if value})

  def get_object(self, bucket, name, body):
    if self.query.get("alt") == "media":
      return self.read_object(bucket, name, body)
    self.send(self.find_object(bucket, name).to_json())

  def read_object(self, bucket, name, body):
    item = self.find_object(bucket, name)
    size = len(item.content)
    byte_range = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    headers = {"x_goog_generation": str(item.generation), "x_goog_metageneration": "1",
               "x_goog_stored_content_length": str(size), "ETag": str(item.generation)}
    if not byte_range:
      return self.send(item.content, **headers)
    first, last = byte_range.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size:
      raise _ErrorStatus(416, "no such range")
    self.send(item.content[start:end], 206, Content_Range=f"bytes {start}-{end - 1}/{size}", **headers)

  def write_object(self, bucket, body):
    kind, name = self.query["uploadType"], self.query.get("name")
    if kind == "resumable":
      name = name or json.loads(body)["name"]
      upload_id = self.storage.begin_upload(bucket, name, self.query)
      url = f"https://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?upload_id={upload_id}"
      return self.send(b"", Location=url)
    if kind == "multipart":
      boundary = re.search(r"boundary=\"?([^\";]+)", self.headers["Content-Type"])[1].encode()
      metadata, content = [part.partition(b"\r\n\r\n")[2] for part in body.split(b"--" + boundary)[1:3]]
      name, body = name or json.loads(metadata)["name"], content[:-2]
    self.check_preconditions(self.storage.objects.get((bucket, name)), self.query)
    self.send(self.storage.put(bucket, name, body).to_json())

  def continue_upload(self, bucket, body):
    bucket, name, query, content = self.storage.uploads[self.query["upload_id"]]
    content_range = re.fullmatch(r"bytes (\*|\d+-\d+)/(\*|\d+)", self.headers.get("Content-Range", "bytes */*"))
    span, total = content_range.groups()
    if span != "*":
      content[int(span.split("-")[0]):] = body
    elif body:
      content[:] = body
    if total == "*" and "Content-Range" in self.headers or total != "*" and int(total) != len(content):
      return self.send(b"", 308, **({"Range": f"bytes=0-{len(content) - 1}"} if content else {}))
    self.check_preconditions(self.storage.objects.get((bucket, name)), query)
    self.send(self.storage.put(bucket, name, bytes(content)).to_json())

  def copy_object(self, bucket, name, to_bucket, to_name, body):
    copied = self.storage.put(to_bucket, to_name, self.find_object(bucket, name).content)
    size = str(len(copied.content))
    self.send({"kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": size, "objectSize": size,
               "resource": copied.to_json()})

  def compose_object(self, bucket, name, body):
    parts = [self.storage.objects[bucket, part["name"]].content for part in json.loads(body)["sourceObjects"]]
    self.send(self.storage.put(bucket, name, b"".join(parts)).to_json())

  def delete_object(self, bucket, name, body):
    self.find_object(bucket, name)
    del self.storage.objects[bucket, name]
    self.send(b"", 204)


_BUCKET, _NAME = "/storage/v1/b/([^/]+)", "([^/]+)"
ROUTES = (
    ("GET", _BUCKET, _Handler.get_bucket),
    ("GET", f"{_BUCKET}/storageLayout", _Handler.get_layout),
    ("GET", f"{_BUCKET}/iam/testPermissions", _Handler.get_permissions),
    ("GET", f"{_BUCKET}/o/?", _Handler.list_objects),
    ("GET", f"{_BUCKET}/o/{_NAME}", _Handler.get_object),
    ("GET", f"/download{_BUCKET}/o/{_NAME}", _Handler.read_object),
    ("POST", f"/upload{_BUCKET}/o/?", _Handler.write_object),
    ("PUT", f"/upload{_BUCKET}/o/?", _Handler.continue_upload),
    ("POST", f"{_BUCKET}/o/{_NAME}/(?:rewriteTo|copyTo)/b/([^/]+)/o/{_NAME}", _Handler.copy_object),
    ("POST", f"{_BUCKET}/o/{_NAME}/compose", _Handler.compose_object),
    ("DELETE", f"{_BUCKET}/o/{_NAME}", _Handler.delete_object),
    ("GET", "/(?!storage/v1|upload/|download/)([^/]+)/(.+)", _Handler.read_object),
)
