"""A headless browser for tests of pages."""

import contextlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--disable-dev-shm-usage", "--virtual-time-budget=20000"),
)
WIDTH, HEIGHT = 1300, 2600
TIMEOUT = 120
"""Seconds. A page takes about 3."""


def installed() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def run(browser: str, *arguments: str, profile: Path) -> str:
    """The browser's output. The browser and its children end with the call."""
    command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, errors
    return output


def ask(browser: str, page: Path, look: str, profile: Path) -> dict[str, Any]:
    """Shows the HTML file and returns the result of the script's function `look`.

    The script goes into a copy of the page beside it, so that relative addresses stay right.
    """
    script = f"""
<script>
{look}
addEventListener("load", () => {{
  const seen = document.createElement("pre");
  seen.id = "seen";
  seen.textContent = JSON.stringify(look());
  document.body.append(seen);
}});
</script>
"""
    copy = page.with_name(f"looked-at-{page.name}")
    copy.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    dom = run(browser, "--dump-dom", copy.as_uri(), profile=profile)
    (seen,) = re.findall(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    found: dict[str, Any] = json.loads(html.unescape(seen))
    return found
