"""The recorder against crashes, damage, full and read-only disks, and any way of cutting the rows up."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalp_nb.feed.depth import DEPTH, ROW_BYTES, Rows, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.recorder import (
    BLOCK_ROWS,
    LIVE,
    MANIFEST,
    PARQUET,
    Recorder,
    RecordingError,
    RecordingTruncated,
    RecordingWriteError,
    compact_recording,
    content_hash,
    read_recording,
    write_parquet,
)

ROOT = Path(__file__).resolve().parents[1]
UNIVERSE = Universe("u", tuple(Instrument(s, "NSE") for s in ("A", "B", "C")))


def sample(n: int, seed: int = 0) -> Rows:
    """Rows of random bytes, so that every bit pattern of a float occurs; only `sym` is kept inside the universe."""
    rng = np.random.default_rng(seed)
    rows = np.frombuffer(rng.bytes(n * ROW_BYTES), DEPTH).copy()
    rows["sym"] = rng.integers(0, 3, n)
    return rows


def small_live(folder: Path) -> tuple[bytes, list[int], Rows]:
    """A closed live file of four frames: its bytes, the offset after each frame, and its rows."""
    rows, ends = sample(10), []
    with Recorder(folder, UNIVERSE, "t") as recorder:
        for part in (rows[:1], rows[1:4], rows[4:5], rows[5:]):
            recorder.append(part)
            recorder.flush()
            ends.append((folder / LIVE).stat().st_size)
        data = (folder / LIVE).read_bytes()
    return data, ends, rows


def test_every_truncation_reads_the_complete_frames(tmp_path: Path) -> None:
    data, ends, rows = small_live(tmp_path / "r")
    first = data.index(b"BLK1")
    counts = [1, 4, 5, 10]
    cut = tmp_path / "cut"
    cut.mkdir()
    for size in range(len(data) + 1):
        (cut / LIVE).write_bytes(data[:size])
        if size < first:
            with pytest.raises(RecordingTruncated):
                read_recording(cut)
            continue
        want = max((n for n, end in zip(counts, ends, strict=True) if end <= size), default=0)
        got = read_recording(cut)
        assert got.rows.tobytes() == rows[:want].tobytes()
        assert got.universe == UNIVERSE
        assert got.dropped_bytes == size - max([first, *(e for e in ends if e <= size)]) or got.manifest.complete


def test_truncated_at_every_offset_then_compacted(tmp_path: Path) -> None:
    """The way a crashed day is finished; every 7th offset, since each writes a parquet file."""
    data, ends, rows = small_live(tmp_path / "r")
    for size in range(data.index(b"BLK1"), len(data), 7):
        folder = tmp_path / "c"
        folder.mkdir()
        (folder / LIVE).write_bytes(data[:size])
        before = read_recording(folder)
        manifest = compact_recording(folder)
        assert (manifest.sha256, manifest.complete) == (before.manifest.sha256, False)
        assert read_recording(folder).rows.tobytes() == before.rows.tobytes()
        shutil.rmtree(folder)


def test_any_flipped_byte_is_refused_or_only_cuts_the_end(tmp_path: Path) -> None:
    data, _, rows = small_live(tmp_path / "r")
    file = tmp_path / "flipped"
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1:])
        try:
            got = read_recording(file)
        except RecordingError:
            continue
        assert got.rows.tobytes() == rows[:len(got.rows)].tobytes()
        assert not got.manifest.complete


def test_any_flipped_byte_of_parquet_is_refused_or_harmless(tmp_path: Path) -> None:
    rows = sample(40)
    write_parquet(rows, UNIVERSE, tmp_path / "p.parquet")
    data = (tmp_path / "p.parquet").read_bytes()
    file, step = tmp_path / "flipped.parquet", max(1, len(data) // 1500)
    refused = 0
    for at in range(0, len(data), step):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1:])
        try:
            assert read_recording(file).rows.tobytes() == rows.tobytes()
        except RecordingError:
            refused += 1
    assert refused > len(data) // step // 3


def test_truncated_parquet_is_refused(tmp_path: Path) -> None:
    write_parquet(sample(20), UNIVERSE, tmp_path / "p.parquet")
    data = (tmp_path / "p.parquet").read_bytes()
    for size in range(0, len(data), 61):
        (tmp_path / "t").write_bytes(data[:size])
        with pytest.raises(RecordingError):
            read_recording(tmp_path / "t")


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 3 * BLOCK_ROWS), max_size=6), flush=st.booleans())
def test_chunking_shows_nowhere(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], flush: bool) -> None:
    rows, folder = sample(3 * BLOCK_ROWS), tmp_path_factory.mktemp("r") / "r"
    with Recorder(folder, UNIVERSE) as recorder:
        for part in np.split(rows, sorted(cuts)):
            recorder.append(part)
            if flush:
                recorder.flush()
    assert recorder.close().sha256 == content_hash(rows)
    assert read_recording(folder).rows.tobytes() == rows.tobytes()
    shutil.rmtree(folder)


def test_several_row_groups(tmp_path: Path) -> None:
    rows = np.tile(sample(1000), 300)
    write_parquet(rows, UNIVERSE, tmp_path / "p.parquet")
    got = read_recording(tmp_path / "p.parquet")
    assert got.rows.tobytes() == rows.tobytes()
    assert sum(got.manifest.per_symbol.values()) == len(rows)


def test_crash_between_any_two_steps_of_compaction(tmp_path: Path) -> None:
    data, _, rows = small_live(tmp_path / "r")
    done = {name: (tmp_path / "r" / name).read_bytes() for name in (PARQUET, MANIFEST)}
    for state in ({LIVE: data, PARQUET + ".part": done[PARQUET][:99]}, {LIVE: data, PARQUET: done[PARQUET]},
                  {LIVE: data, PARQUET: done[PARQUET], MANIFEST + ".part": b"{"}, {LIVE: data, **done}, done, {PARQUET: done[PARQUET]}):
        folder = tmp_path / "s"
        folder.mkdir()
        for name, content in state.items():
            (folder / name).write_bytes(content)
        assert read_recording(folder).rows.tobytes() == rows.tobytes()
        assert compact_recording(folder).rows == 10
        assert read_recording(folder).rows.tobytes() == rows.tobytes()
        shutil.rmtree(folder)


CHILD = """
    import sys
    from scalp_nb.feed.recorder import Recorder
    from test_feed_recorder import UNIVERSE, sample
    recorder, rows = Recorder(sys.argv[1], UNIVERSE, "child"), sample(5000)
    k = 0
    while True:
        part = rows[k % 4900:k % 4900 + 1 + k % 97]
        recorder.append(part)
        recorder.flush()
        k += len(part)
        print(k, flush=True)
"""


def child(code: str, *args: str) -> subprocess.Popen[str]:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


@pytest.mark.slow
def test_kill_9_loses_nothing_flushed(tmp_path: Path) -> None:
    process = child(CHILD, str(tmp_path / "r"))
    assert process.stdout is not None
    said = 0
    for line in process.stdout:
        said = int(line)
        if said > 20_000:
            break
    with pytest.raises(RecordingWriteError, match="is being written"):
        compact_recording(tmp_path / "r")
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().splitlines()
    process.wait()
    complete = [line for line in rest if line.isdigit()]
    got = read_recording(tmp_path / "r")
    assert len(got.rows) >= int(complete[-1] if complete else said)
    rows, k, want = sample(5000), 0, []
    while k < len(got.rows):
        want.append(rows[k % 4900:k % 4900 + 1 + k % 97])
        k += len(want[-1])
    assert got.rows.tobytes() == np.concatenate(want).tobytes()
    assert not compact_recording(tmp_path / "r").complete


FULL = """
    import resource, signal, sys
    from scalp_nb.feed.recorder import Recorder, RecordingWriteError, read_recording
    from test_feed_recorder import UNIVERSE, sample
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    recorder, rows = Recorder(sys.argv[1], UNIVERSE), sample(30_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, hard))  # the disk is full from here
    try:
        recorder.append(rows)
        raise SystemExit("wrote beyond the limit")
    except RecordingWriteError as e:
        assert "rows.live cannot be written (File too large)" in str(e), e
    taken = recorder.rows
    assert 0 < taken < len(rows), taken
    on_disk = read_recording(sys.argv[1])
    assert on_disk.rows.tobytes() == rows[:len(on_disk.rows)].tobytes() and on_disk.dropped_bytes == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # space again: carry on where it stopped
    recorder.append(rows[taken:])
    recorder.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # full again, now for the compaction
    try:
        recorder.close()
        raise SystemExit("compacted beyond the limit")
    except RecordingWriteError as e:
        print(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_recording(sys.argv[1]).rows.tobytes() == rows.tobytes()
"""


@pytest.mark.slow
def test_full_disk_names_the_path_and_keeps_what_was_written(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    process = child(FULL, str(tmp_path / "r"))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "cannot be written" in out
    assert compact_recording(tmp_path / "r").sha256 == content_hash(sample(30_000))
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [MANIFEST, PARQUET]


def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "ro"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # a superuser writes anywhere: use what refuses even them
        folder = Path("/proc/scalp_nb_recording")
    with pytest.raises(RecordingWriteError, match=str(folder)):
        Recorder(folder, UNIVERSE)


def test_float_patterns_survive(tmp_path: Path) -> None:
    rows = empty_depth(4096)
    patterns = np.random.default_rng(3).integers(0, 2**64, 4096, np.uint64)
    patterns[:8] = [0, 1 << 63, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, (0x7FF8 << 48) + 1, (0xFFF8 << 48) + 7, 1]
    rows["ltp"] = patterns.view(np.float64)
    write_parquet(rows, UNIVERSE, tmp_path / "p.parquet")
    assert read_recording(tmp_path / "p.parquet").rows["ltp"].view(np.uint64).tolist() == patterns.tolist()
