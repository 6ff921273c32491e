"""Controls headless Chromium through the DevTools protocol over two pipes; needs no package besides the browser."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

PROGRAM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEY_CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Escape": 27, "Home": 36,
             "End": 35, "Enter": 13}


def find_chromium() -> str | None:
  """Returns the path of the first Chromium or Chrome on PATH; None if it isn't installed."""
  return next(filter(None, map(shutil.which, PROGRAM_NAMES)), None)


class Browser:
  """A browser with one tab."""

  def __init__(self, program: str, profile: pathlib.Path, size: tuple[int, int] = (1280, 900)):
    """Starts a browser; end it with `close` or `contextlib.closing`.

    Args:
      program: path of the executable.
      profile: an empty folder for the browser's profile.
      size: width and height of the window, in pixels.
    """
    to_browser, self._write = os.pipe()
    self._read, from_browser = os.pipe()

    def set_descriptors():                            # Chromium reads commands from descriptor 3, answers on 4
      for source, target in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
        os.dup2(source, target)

    self._process = subprocess.Popen(
        [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars",
         f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}",
         "about:blank"],
        preexec_fn=set_descriptors, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(to_browser)
    os.close(from_browser)
    self._message_id, self._session, self._buffer, self.events = 0, None, b"", []
    (page,) = [target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page"]
    self._session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network"):
      self(f"{domain}.enable")
    self.resize(*size)

  def __call__(self, method: str, **parameters) -> dict:
    """Sends a command of the protocol and returns its result; events that arrive meanwhile go to `events`."""
    self._message_id += 1
    message = {"id": self._message_id, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while (answer := self._read_message()).get("id") != self._message_id:
      self.events.append(answer)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]

  def _read_message(self, timeout: float = 60) -> dict:
    while b"\0" not in self._buffer:
      if not select.select([self._read], [], [], timeout)[0]:
        raise TimeoutError(f"no message from Chromium for {timeout} s")
      data = os.read(self._read, 1 << 20)
      if not data:
        raise RuntimeError("Chromium has exited")
      self._buffer += data
    message, _, self._buffer = self._buffer.partition(b"\0")
    return json.loads(message)

  def resize(self, width: int, height: int, dark: bool = False) -> None:
    """Sets the size of the window in pixels, and the color scheme of the system."""
    self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self("Emulation.setEmulatedMedia", features=[scheme])

  def open(self, path: pathlib.Path) -> None:
    """Opens a page and waits until its script has finished."""
    self.events.clear()
    self("Page.navigate", url=path.resolve().as_uri())
    self.wait_until("document.body && document.body.dataset.ready && document.readyState == 'complete'")

  def evaluate(self, expression: str):
    """Returns the value of a JavaScript expression; a promise is awaited."""
    response = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in response:
      raise RuntimeError(f"{expression}: {response['exceptionDetails']}")
    return response["result"].get("value")

  def wait_until(self, expression: str, timeout: float = 30) -> None:
    """Waits until a JavaScript expression is true."""
    end = time.monotonic() + timeout
    while not self.evaluate(f"Boolean({expression})"):
      if time.monotonic() > end:
        raise TimeoutError(f"not true within {timeout} s: {expression}")
      time.sleep(0.02)

  def wait_for_frame(self) -> None:
    """Waits until pending changes are drawn."""
    self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

  def press_key(self, name: str) -> None:
    """Presses a key: a character, or one of KEY_CODES."""
    common = {"key": name, "windowsVirtualKeyCode": KEY_CODES.get(name, ord(name[0].upper()))}
    self("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": name} if len(name) == 1 else {}))
    self("Input.dispatchKeyEvent", type="keyUp", **common)
    self.wait_for_frame()

  def move_pointer(self, x: float, y: float) -> None:
    """Moves the mouse pointer to a position in pixels."""
    self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    self.wait_for_frame()

  def save_screenshot(self, path: pathlib.Path) -> None:
    """Writes a PNG of the visible part of the page."""
    self.wait_for_frame()
    path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

  def close(self) -> None:
    """Ends the browser."""
    with contextlib.suppress(Exception):
      self._session = None
      self("Browser.close")
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._read)
    os.close(self._write)
