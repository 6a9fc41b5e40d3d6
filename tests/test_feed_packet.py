"""The packet decoder against recorded packets, against the broker's own SDK, and against noise."""

import json
import struct
from typing import Any

import numba
import numpy as np
import pytest
from angel_sdk import sdk_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import realdata

from scalp_nb.feed.depth import LEVELS, depth_row, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.packet import (
    PACKET_BYTES,
    PACKET_OK,
    FeedError,
    decode_into,
    decode_snap_quote,
    encode_snap_quote,
    packet_extras,
    read_packet,
    token_table,
    wire_price,
)

FIXTURES = [
    "ws_snapquote_INFY_2024-12-20.json",
    "pysdk_snapquote_1673337615_NIFTYopt_49697_sdk_before_swap_fix.json",
    "pysdk_snapquote_1689225333_NIFTYopt_41735_sdk_after_swap_fix.json",
    "pysdk_snapquote_1718081943_opt_48840_sdk_before_swap_fix.json",
    "pysdk_snapquote_1735201464_INFY_1594_sdk_after_swap_fix.json",
    "pysdk_snapquote_1737356263_NIFTYopt_54786_sdk_after_swap_fix.json",
]


def field(d: dict[str, Any], *names: str) -> Any:
    """The first of several spellings (the JavaScript and Python SDKs differ)."""
    return next(d[n] for n in names if n in d)


def level(d: dict[str, Any]) -> tuple[int, int, int, int]:
    return int(d["flag"]), int(d["quantity"]), int(d["price"]), int(field(d, "no of orders", "no_of_orders"))


def wire_levels(d: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """The ten levels as they were on the wire: bids (flag 1) first, whatever the SDK of the day called them."""
    both = [level(x) for x in d["best_5_buy_data"] + d["best_5_sell_data"]]
    return [x for x in both if x[0] == 1] + [x for x in both if x[0] == 0]


def rebuild(d: dict[str, Any]) -> bytes:
    """The packet a recorded dictionary came from, packed here field by field, independently of the module."""
    def q(*names: str) -> bytes:
        return struct.pack("<q", int(field(d, *names)))

    change = field(d, "open_interest_change", "open_interest_change_percentage")
    parts = [
        struct.pack("<BB25s", int(d["subscription_mode"]), int(d["exchange_type"]), str(d["token"]).strip('"').encode()),
        q("sequence_number"), q("exchange_timestamp"), q("last_traded_price"), q("last_traded_quantity"),
        q("avg_traded_price", "average_traded_price"), q("vol_traded", "volume_trade_for_the_day"),
        struct.pack("<dd", float(d["total_buy_quantity"]), float(d["total_sell_quantity"])),
        q("open_price_day", "open_price_of_the_day"), q("high_price_day", "high_price_of_the_day"),
        q("low_price_day", "low_price_of_the_day"), q("close_price", "closed_price"),
        q("last_traded_timestamp"), q("open_interest"),
        struct.pack("<q", change) if isinstance(change, int) else struct.pack("<d", float(change)),
        *(struct.pack("<hqqh", *lv) for lv in wire_levels(d)),
        q("upper_circuit", "upper_circuit_limit"), q("lower_circuit", "lower_circuit_limit"),
        q("fiftytwo_week_high", "52_week_high_price"), q("fiftytwo_week_low", "52_week_low_price"),
    ]
    return b"".join(parts)


@pytest.mark.parametrize("name", FIXTURES)
def test_recorded_packets(name: str) -> None:
    d = json.loads(realdata(f"fixtures/angel/{name}").read_text())
    packet, token = rebuild(d), str(d["token"]).strip('"')
    assert len(packet) == PACKET_BYTES
    segment = "CM" if int(d["exchange_type"]) == 1 else "FO"
    row = read_packet(packet, token_table(Universe("u", (Instrument("OTHER", "NSE", "7"), Instrument("X", "NSE", token, segment=segment)))), 99)[0]
    assert (row["ts"], row["recv"], row["seq"], row["sym"]) == (int(d["exchange_timestamp"]) * 10**6, 99, int(d["sequence_number"]), 1)
    assert row["ltp"] == int(d["last_traded_price"]) / 100
    assert (row["ltq"], row["volume"]) == (int(d["last_traded_quantity"]), int(field(d, "vol_traded", "volume_trade_for_the_day")))
    assert (row["total_buy"], row["total_sell"]) == (float(d["total_buy_quantity"]), float(d["total_sell_quantity"]))
    for k, (flag, qty, px, orders) in enumerate(wire_levels(d)):
        side = "bid" if flag == 1 else "ask"
        assert (row[f"{side}_px"][k % 5], row[f"{side}_qty"][k % 5], row[f"{side}_orders"][k % 5]) == (px / 100, qty, orders)
    assert row["bid_px"][0] < row["ask_px"][0]
    extras = packet_extras(packet)
    assert extras.upper_circuit == int(field(d, "upper_circuit", "upper_circuit_limit"))
    assert extras.lower_circuit == int(field(d, "lower_circuit", "lower_circuit_limit"))
    assert float(wire_price(extras.upper_circuit, 1)) == extras.upper_circuit / 100
    assert encode_snap_quote(row, token, int(d["exchange_type"]), extras) == packet


def same_as_sdk(packet: bytes, sdk: dict[str, Any]) -> None:
    """Everything a depth row and its extras hold, against the SDK's dictionary of the same bytes."""
    row, x = empty_depth(1), packet_extras(packet)
    assert decode_snap_quote(packet, row, 0, 0, 0) >= PACKET_OK
    r = row[0]
    assert r["ts"] == sdk["exchange_timestamp"] * 10**6
    assert (r["seq"], r["ltq"], r["volume"]) == (sdk["sequence_number"], sdk["last_traded_quantity"], sdk["volume_trade_for_the_day"])
    assert np.nan_to_num(r["ltp"]) == sdk["last_traded_price"] / 100
    assert (r["total_buy"], r["total_sell"]) == (sdk["total_buy_quantity"], sdk["total_sell_quantity"])
    assert (x.avg_price, x.open, x.high, x.low, x.prev_close) == tuple(
        sdk[n] for n in ("average_traded_price", "open_price_of_the_day", "high_price_of_the_day", "low_price_of_the_day", "closed_price"))
    assert (x.upper_circuit, x.lower_circuit, x.high_52w, x.low_52w, x.last_trade_s, x.open_interest) == tuple(
        sdk[n] for n in ("upper_circuit_limit", "lower_circuit_limit", "52_week_high_price", "52_week_low_price",
                         "last_traded_timestamp", "open_interest"))
    for side, key in (("bid", "best_5_buy_data"), ("ask", "best_5_sell_data")):
        theirs = [lv for lv in sdk[key] if lv["price"]]
        shown = int(np.count_nonzero(~np.isnan(r[f"{side}_px"])))
        assert shown == len(theirs)
        for k, lv in enumerate(theirs):
            assert (r[f"{side}_px"][k], r[f"{side}_qty"][k], r[f"{side}_orders"][k]) == (lv["price"] / 100, lv["quantity"], lv["no of orders"])


@pytest.mark.parametrize("name", FIXTURES)
def test_recorded_packets_agree_with_the_sdk(name: str) -> None:
    packet = rebuild(json.loads(realdata(f"fixtures/angel/{name}").read_text()))
    same_as_sdk(packet, sdk_decoder()(packet))


@st.composite
def books(draw: st.DrawFn) -> Any:
    """A random tidy book on the paise grid, with short and empty sides."""
    mid = draw(st.integers(1_000, 10**8))
    sides = []
    for sign in (-1, 1):
        steps = draw(st.lists(st.integers(1, 150), max_size=LEVELS))
        px = [mid + sign * int(s) for s in np.cumsum(steps)]
        sides.append([(p / 100, draw(st.integers(0, 2**40)), draw(st.integers(0, 65535))) for p in px if p > 0])
    return depth_row(draw(st.integers(0, 4 * 10**12)) * 10**6, 0, *sides, recv=0, seq=draw(st.integers(0, 2**60)),
                     ltp=draw(st.sampled_from([mid / 100, float("nan")])), ltq=draw(st.integers(0, 10**6)), volume=draw(st.integers(0, 2**53)),
                     total_buy=float(draw(st.integers(0, 2**53))), total_sell=float(draw(st.integers(0, 2**53))))


@settings(max_examples=150, deadline=None)
@given(row=books())
def test_round_trip_and_sdk_on_any_book(row: Any) -> None:
    packet = encode_snap_quote(row, "26009", 2)
    got = empty_depth(1)
    assert decode_snap_quote(packet, got, 0, 0, 0) == PACKET_OK
    assert got.tobytes() == row.tobytes()
    same_as_sdk(packet, sdk_decoder()(packet))


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(min_size=0, max_size=2 * PACKET_BYTES), mode=st.booleans())
def test_noise_never_raises_anything_else(noise: bytes, mode: bool) -> None:
    if mode and len(noise) >= PACKET_BYTES:
        noise = b"\x03\x01" + noise[2:PACKET_BYTES]
    table = token_table(Universe("u", (Instrument("X", "NSE", "1594"),)))
    try:
        row = read_packet(noise, table, 0)
    except FeedError:
        return
    assert row["sym"][0] == 0


def test_inlines_into_a_larger_kernel() -> None:
    """Packets back to back in one buffer, decoded inside somebody else's compiled loop, with no Python between."""
    rows = [depth_row(10**9 * (k + 1), 0, [(round(100 - k * 0.05, 2), 5 + k, 1)], [(101, 7, 2)], ltp=100.5, volume=k, total_buy=1, total_sell=2)
            for k in range(50)]
    buffer = np.frombuffer(b"".join(encode_snap_quote(r, "1", 1) for r in rows), np.uint8).copy()
    out = empty_depth(50)

    @numba.njit
    def kernel(address, out):  # type: ignore[no-untyped-def]
        bad = 0
        for k in range(len(out)):
            bad += decode_into(address + k * 379, 379, out, k, 0, out["recv"][k]) != 0
        return bad

    out["recv"] = [r["recv"][0] for r in rows]
    assert kernel(buffer.ctypes.data, out) == 0
    assert out.tobytes() == np.concatenate(rows).tobytes()
