"""Headless Chromium over the WebDriver protocol, by the standard library alone."""

import json
import os
import re
import shutil
import subprocess
import urllib.request

#: CI sets the variable once it has installed a browser: there a missing one is an error, not a skip.
AVAILABLE = (
    bool(shutil.which("chromium") and shutil.which("chromedriver"))
    or os.environ.get("TEST_BROWSER") == "required"
)
_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1200,900",
]  # fmt: skip


class Browser:
    """One page at a time; ``with Browser(downloads) as browser``."""

    def __init__(self, downloads):
        self._downloads = downloads

    def __enter__(self):
        command = [shutil.which("chromedriver"), "--port=0"]
        self._driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self._driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                self._root = f"http://127.0.0.1:{found[1]}"
                break
        options = {
            "binary": shutil.which("chromium"),
            "args": [*_ARGUMENTS, f"--user-data-dir={self._downloads / 'profile'}"],
            "prefs": {"download.default_directory": str(self._downloads)},
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        session = self._ask("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self._root += f"/session/{session}"
        return self

    def __exit__(self, *error):
        try:
            self._ask("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            self._driver.stdout.close()

    def _ask(self, path, body=None, method="POST"):
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            self._root + path, data, {"Content-Type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=30) as answer:
            return json.load(answer)["value"]

    def open(self, path):
        self._ask("/url", {"url": path.as_uri()})

    def run(self, script, *arguments):
        """What a function body returns in the page; a promise is waited for."""
        return self._ask("/execute/sync", {"script": script, "args": list(arguments)})

    def complaints(self):
        """What the page's console said: errors, refused requests."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def requests(self):
        """Addresses that were asked for; data, files and the browser's own pages left out."""
        events = [json.loads(e["message"])["message"] for e in self._ask("/se/log", {"type": "performance"})]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "file:", "blob:", "chrome:"))]
