"""Headless Chromium for tests of pages: what the page holds once its scripts have run, and what they complained about."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
)
_OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"


class Seen(NamedTuple):
    """dom: the page as it stands at the end.  complaints: lines of the console."""

    dom: str
    complaints: list[str]


def browser() -> str:
    """Chromium; the test is skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here (on Debian: apt-get install chromium)")
    return found


def look(path: Path, *, folder: Path, probe: str = "") -> Seen:
    """Open a page without a network.  probe: JavaScript that runs behind the page's own scripts."""
    shown = folder / "shown.html"
    text = path.read_text(encoding="utf-8")
    head, end, tail = text.rpartition("</body>")
    shown.write_text(f"{head}<script>{probe}</script>{end}{tail}", encoding="utf-8")
    profile = f"--user-data-dir={folder / 'chromium'}"
    command = [browser(), *_FLAGS, _OFFLINE, profile, "--window-size=1180,3200", "--dump-dom", shown.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return Seen(done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr))
