"""Timing shared by the benchmarks: medians, so that one slow run says nothing."""

import statistics
import time
from collections.abc import Callable


def medians(fn: Callable[[], object], n: int = 7) -> tuple[float, float, float]:
    """Median, fastest and slowest wall time of `n` calls of `fn`, in seconds, after one call that is not counted."""
    fn()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times), max(times)
