"""Recorder: rows per second into the live file, rows per second to parquet, bytes a row on disk.

Baselines in the same run: the same blocks written raw with `ndarray.tofile`, and the whole written as parquet (zstd) by
pandas-style defaults. Data: the FROG session of the recordings folder, five levels, and ten symbols made of it by shifting
time and price; the single-symbol figure is the honest one for size. Targets: 1,500,000 rows/s in blocks, 60 bytes/row.

    python tests/bench/bench_recorder.py
"""

# ruff: noqa: E402
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from bench.common import medians
from realdata import data_root

from scalp_nb.feed.depth import Rows, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.recorder import LIVE, PARQUET, Recorder, read_recording

BLOCK = 4096


def frog() -> Rows:
    """The FROG MBP-10 session as depth rows (five levels)."""
    root = data_root()
    if root is None:
        sys.exit("recordings absent: set SCALP_REALDATA")
    with zipfile.ZipFile(root / "lob_equity_us/FROG_2025-04-03_mbp10.zip") as z:
        frame = pd.read_csv(z.open(next(n for n in z.namelist() if n.endswith(".csv"))))
    rows = empty_depth(len(frame))
    rows["ts"] = pd.to_datetime(frame["ts_event"]).astype("int64")
    rows["recv"], rows["seq"] = rows["ts"] + frame["ts_in_delta"].to_numpy(), frame["sequence"]
    for k in range(5):
        for side in ("bid", "ask"):
            for ours, theirs in (("px", "px"), ("qty", "sz"), ("orders", "ct")):
                rows[f"{side}_{ours}"][:, k] = frame[f"{side}_{theirs}_{k:02d}"]
    trade = (frame["action"] == "T").to_numpy()
    rows["ltp"] = pd.Series(np.where(trade, frame["price"], np.nan)).ffill()
    rows["volume"] = np.cumsum(np.where(trade, frame["size"], 0))
    return rows


def ten(rows: Rows) -> Rows:
    """Ten symbols from one: shifted in time and price, merged in time order."""
    parts = []
    for s in range(10):
        part = rows.copy()
        part["sym"] = s
        for f in ("ts", "recv"):
            part[f] += s * 137_000_003
        for f in ("bid_px", "ask_px", "ltp"):
            part[f] = np.round(part[f] + s * 13.37, 2)
        parts.append(part)
    merged = np.concatenate(parts)
    return merged[np.argsort(merged["ts"], kind="stable")]


def main() -> None:
    one = frog()
    many = np.tile(ten(one), 3)
    universe = Universe("bench", tuple(Instrument(f"S{i}", "US") for i in range(10)))
    folder = Path(tempfile.mkdtemp())
    blocks = [many[i:i + BLOCK] for i in range(0, len(many), BLOCK)]

    def live(compact: bool = False) -> None:
        shutil.rmtree(folder / "r", ignore_errors=True)
        recorder = Recorder(folder / "r", universe, "bench")
        for block in blocks:
            recorder.append(block)
        recorder.flush(sync=True)
        if compact:
            recorder.close()

    def raw() -> None:
        with (folder / "raw").open("wb") as f:
            for block in blocks:
                block.tofile(f)
            f.flush()

    def plain_parquet() -> None:
        columns = {n: np.ascontiguousarray(many[n]) for n in many.dtype.names if many[n].ndim == 1}
        columns |= {f"{n}_{k}": np.ascontiguousarray(many[n][:, k]) for n in many.dtype.names if many[n].ndim == 2 for k in range(5)}
        pq.write_table(pa.table(columns), folder / "plain.parquet", compression="zstd")

    def report(name: str, fn, n_rows: int, baseline: float | None = None, n: int = 5) -> float:
        median, low, high = medians(fn, n)
        ratio = f"  {baseline / median:5.2f} x baseline" if baseline else ""
        print(f"{name:44} {n_rows / median / 1e6:6.2f} M rows/s  (median {median:.3f} s, {low:.3f}..{high:.3f}){ratio}", flush=True)
        return median

    print(f"{len(many):,} rows, blocks of {BLOCK}")
    base = report("baseline: ndarray.tofile", raw, len(many))
    report("Recorder.append in blocks, fsync at the end", live, len(many), base)
    live_bytes = (folder / "r" / LIVE).stat().st_size / len(many)
    base = report("baseline: parquet zstd, default encodings", plain_parquet, len(many))
    report("record and compact (hash, verify)", lambda: live(compact=True), len(many), base)
    report("read_recording, verified", lambda: read_recording(folder / "r"), len(many))

    rows = empty_depth(1)
    recorder = Recorder(folder / "single", universe)
    median, low, high = medians(lambda: [recorder.append(rows) for _ in range(20_000)], 5)
    recorder.close(compact=False)
    print(f"{'Recorder.append of one row':44} {median / 20_000 * 1e6:6.2f} us/row ({low / 0.02:.2f}..{high / 0.02:.2f})")

    ours, plain = ((folder / f).stat().st_size / len(many) for f in (f"r/{PARQUET}", "plain.parquet"))
    print(f"bytes/row, ten symbols: raw {many.dtype.itemsize}, live {live_bytes:.1f}, compacted {ours:.1f}, default parquet {plain:.1f}")
    with Recorder(folder / "one", universe) as recorder:
        recorder.append(one)
        recorder.flush()
        live_bytes = (folder / "one" / LIVE).stat().st_size / len(one)
    size = (folder / "one" / PARQUET).stat().st_size / len(one)
    print(f"bytes/row, FROG alone ({len(one):,} rows): live {live_bytes:.1f}, compacted {size:.1f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
