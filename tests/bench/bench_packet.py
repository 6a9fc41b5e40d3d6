"""One SNAP_QUOTE packet to one depth row, against the broker SDK's own decode of the same bytes in the same run.

    python tests/bench/bench_packet.py
"""

# ruff: noqa: E402
import sys
from pathlib import Path

import numpy as np
from numba import njit

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from angel_sdk import sdk_decoder
from bench.common import medians

from scalp_nb.feed.depth import depth_row, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.packet import _WIRE, PACKET_BYTES, decode_at, decode_into, decode_snap_quote, encode_snap_quote, find_sym, token_key, token_table

N = 20_000


@njit
def whole_path(addr, n, keys, syms, rows, recv):  # type: ignore[no-untyped-def]
    """What a feed kernel does: token, look-up, decode, for n packets back to back."""
    bad = 0
    for k in range(n):
        at = addr + k * 379
        sym = find_sym(keys, syms, token_key(at))
        bad += decode_into(at, 379, rows, k % len(rows), sym, recv) != 0
    return bad


def main() -> None:
    row = depth_row(1_735_201_464_000 * 10**6, 0, [(round(1907 - k * 0.05, 2), 5 + k, 2) for k in range(5)],
                    [(round(1907.35 + k * 0.05, 2), 43, 3) for k in range(5)],
                    ltp=1907.35, ltq=3, volume=2129562, total_buy=224305, total_sell=246078, seq=12109948)
    packet = encode_snap_quote(row, "1594", 1)
    buffer = np.frombuffer(packet * N, np.uint8).copy()
    table = token_table(Universe("u", tuple(Instrument(f"S{t}", "NSE", str(t)) for t in range(1590, 1621))))
    rows = empty_depth(64)
    addr, rows_addr = buffer.ctypes.data, rows.ctypes.data
    parse = sdk_decoder()
    assert whole_path(addr, N, table.keys, table.syms, rows, 1) == 0

    cases = {
        "baseline: SDK _parse_binary_data": lambda: [parse(packet) for _ in range(N // 10)],
        "struct.Struct, all fields to a tuple": lambda: [_WIRE.unpack(packet) for _ in range(N)],
        "decode_snap_quote(bytes) from Python": lambda: [decode_snap_quote(packet, rows, 0, 0, 1) for _ in range(N)],
        "decode_at(addresses) from Python": lambda: [decode_at(addr, PACKET_BYTES, rows_addr, 0, 0, 1) for _ in range(N)],
        "token + look-up + decode inside a kernel": lambda: whole_path(addr, N, table.keys, table.syms, rows, 1),
    }
    baseline = 0.0
    for name, fn in cases.items():
        per = N // 10 if "SDK" in name else N
        median, low, high = (t / per * 1e6 for t in medians(fn, 7))
        baseline = baseline or median
        print(f"{name:42} {median:8.3f} us  ({low:.3f}..{high:.3f})  {baseline / median:7.1f} x the SDK", flush=True)


if __name__ == "__main__":
    main()
