"""SkyPilot in a process of its own: importing it writes below HOME."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run(code: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
