"""A real headless Chromium for tests and pictures: what it shows, what it asked for, what it complained about."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.integration.gate import poll
from tests.parts import part

__all__ = ["Browser", "browsing"]

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--lang=en-US",
    "--hide-scrollbars",
)


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """The size of the window in CSS pixels, and which colours its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, address: str) -> None:
        """Goes to an address and forgets what was logged before."""
        self.driver.get("about:blank")
        self.complaints()
        self.hosts()
        self.driver.get(address)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        """The elements that fit a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Their texts, in the order of the document, whether they are seen or not."""
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def text(self, selector: str) -> str:
        """The text of the one that fits."""
        (found,) = self.texts(selector)
        return found

    def wait_for_rows(self, count: int) -> None:
        """Until the table has so many sessions."""
        poll(lambda: len(self.texts("#rows tr")) == count, f"{count} sessions on the page")

    def complaints(self) -> list[str]:
        """What the console said since the last look."""
        return [each["message"] for each in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """Where the page's requests went since the last look."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(urlsplit(message["params"]["request"]["url"]).netloc)
        return found - {""}

    def photograph(self, path: Path) -> None:
        """The whole page as PNG."""
        options = {"captureBeyondViewport": True, "format": "png"}
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))


@contextmanager
def browsing(width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[Browser]:
    """A browser with an empty profile, that ends with the block."""
    options = Options()
    options.binary_location = str(part("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(str(part("chromedriver"))))
        try:
            driver.execute_cdp_cmd("Network.enable", {})
            browser = Browser(driver)
            browser.look(width, height, scheme)
            yield browser
        finally:
            driver.quit()
