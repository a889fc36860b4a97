# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that looks at local pages, and what it can measure of them.

Debian's chromium and chromedriver, with a profile of its own; nothing is fetched to drive it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_QUIET = (
    *("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)

# Of every text that can be seen: itself, its size on the screen in CSS pixels, its colour, and the
# colour of what is behind it. Text of a drawing is as large as the drawing is scaled.
_TEXTS = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
for (let node; (node = walker.nextNode()); ) {
  const element = node.parentElement, style = getComputedStyle(element);
  const range = document.createRange();
  range.selectNodeContents(node);
  const box = range.getBoundingClientRect();
  if (!node.data.trim() || box.width < 2 || box.height < 2 || !element.checkVisibility()) continue;
  const drawn = element instanceof SVGElement;
  const scale = drawn ? element.getScreenCTM().a : 1;
  let behind = drawn ? element.ownerSVGElement.parentElement : element;
  while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
    behind = behind.parentElement;
  found.push({
    text: node.data.trim(), pixels: parseFloat(style.fontSize) * scale,
    colour: drawn ? style.fill : style.color,
    behind: behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)",
    weight: style.fontWeight, right: box.right,
  });
}
return found;
"""

# What reaches beyond the window and is not cut or scrolled by something around it.
_TOO_WIDE = """
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  const box = element.getBoundingClientRect();
  if (!element.checkVisibility() || box.right <= innerWidth + 0.5) continue;
  let around = element;
  while (around && getComputedStyle(around).overflowX === "visible") around = around.parentElement;
  if (!around || around === document.documentElement) found.push(element.outerHTML.slice(0, 200));
}
return found;
"""


class Browser:
    """One window. Pages are opened from files, for a medium of a certain width and mode."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, page: Path, *, width: int, dark: bool = False, media: str = "screen") -> None:
        """Load the page anew; all that unfolds is unfolded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", media=media, features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", **size)
        self._driver.get(page.as_uri())
        self.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self._driver.execute_script(script)

    def texts(self) -> list[dict[str, Any]]:
        """Every text that is seen: text, pixels, colour, behind, weight, right."""
        found = self.run(_TEXTS)
        assert isinstance(found, list) and found
        return found

    def too_wide(self) -> list[str]:
        """The starts of what makes the page wider than its window."""
        found = self.run(_TOO_WIDE)
        assert isinstance(found, list)
        return found

    def complaints(self) -> list[str]:
        """What the console said since it was last asked."""
        return [f"{line['level']}: {line['message']}" for line in self._driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Every address that was asked for since it was last asked."""
        events = [json.loads(line["message"]) for line in self._driver.get_log("performance")]
        messages = [event["message"] for event in events]
        sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [m["params"]["request"]["url"] for m in sent]

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self._command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _command(self, name: str, **parameters: Any) -> Any:
        return self._driver.execute_cdp_cmd(name, parameters)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile directory; it ends with the block."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for word in (*_QUIET, f"--user-data-dir={profile}"):
        options.add_argument(word)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which Chromium refuses to have as root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


def is_local(address: str) -> bool:
    """Whether an address is fetched from no network; Chromium's own pages are its start page."""
    return urlsplit(address).scheme in ("file", "data", "about", "chrome")
