"""Shared by every test: the helpers of this folder are importable, and property tests behave the same on every CI run.

Locally hypothesis draws new examples each time; CI repeats the same ones, so that a red CI speaks of the change under test.
"""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
