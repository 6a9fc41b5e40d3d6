"""Shared by every test: the helpers of this folder are importable, and property tests behave the same on every CI run.

Locally hypothesis draws new examples each time; CI repeats the same ones, so that a red CI speaks of the change under test.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A shell that starts the tests in the background has them ignore Ctrl-C and hang-ups, and so would every process they start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN: signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def restore_signals() -> Iterator[None]:
    "A session run in this process takes its signal handlers with it."
    kept = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for s, handler in kept.items(): signal.signal(s, handler)
