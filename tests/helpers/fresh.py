"""Scripts in processes of their own, where nothing else has run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def number_of(script: str, folder: Path) -> float:
    """Run a script on a model folder, and return the number that it prints."""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)
