"""Frames in HDF5 and NeXus files: stacks, finding the dataset, and places that hold no complete frame."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from scatterflow.errors import FrameError
from scatterflow.frames import open_stack, read_frame, read_frames


def poisson(shape, dtype="int32"):
    return np.random.default_rng(1).poisson(60.0, shape).astype(dtype)


def write_hdf5(path: Path, values: Any, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("/entry/data/data", data=values, **options)


def test_stacks_are_indexed_in_order_of_storage(tmp_path):
    path, values = tmp_path / "scan.h5", poisson((3, 2, 6, 5), "uint16")
    write_hdf5(path, values, chunks=(1, 1, 6, 5), **hdf5plugin.Bitshuffle())
    for index, image in enumerate(values.reshape(-1, 6, 5)):
        np.testing.assert_array_equal(read_frame(f"{path}::/entry/data/data", index=index)["counts"], image[::-1])
    np.testing.assert_array_equal(read_frame(path, index=np.int64(3))["counts"], values[1, 1, ::-1])
    frames = dict(read_frames([path]))
    assert list(frames) == [f"{path}::/entry/data/data[{index}]" for index in range(6)]
    assert len({frame.attrs["sha256"] for frame in frames.values()}) == 6


@pytest.mark.parametrize("index", [-1, 6, 1.5, "0"])
def test_index_out_of_range_is_refused(tmp_path, index):
    path = tmp_path / "scan.h5"
    write_hdf5(path, poisson((6, 6, 5)))
    with pytest.raises(FrameError, match="must be an integer from 0 to 5, got"):
        read_frame(path, index=index)


def test_the_only_dataset_is_found_through_links(tmp_path):
    write_hdf5(tmp_path / "data_000001.h5", poisson((2, 6, 5)))
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("data_000001.h5", "/entry/data/data")
        file["entry/data/data_000002"] = h5py.ExternalLink("data_000002.h5", "/entry/data/data")  # does not exist
        file["entry/again"] = h5py.SoftLink("/entry/data/data_000001")
        file["entry/circle"] = file["entry"]
        file["entry/instrument/detector/count_time"] = 0.25
        file["entry/instrument/detector/saturation_value"] = np.array([80])
    frame = read_frame(tmp_path / "master.h5", index=1)
    assert frame.attrs["dataset"] == "/entry/data/data_000001"
    assert (frame.attrs["exposure_time_s"], frame.attrs["saturation"]) == (0.25, 80)
    np.testing.assert_array_equal(frame["mask"], poisson((2, 6, 5))[1, ::-1] < 80)


def _several(path):
    with h5py.File(path, "w") as file:
        file["b/image"], file["a"] = poisson((6, 5)), poisson((6, 5))


def _group(path):
    with h5py.File(path, "w") as file:
        file["data/words"], file["data/table"] = ["text"] * 3, np.zeros((3, 3), [("x", "i4")])


def _unwritten(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (4, 6, 5), "u2", chunks=(1, 3, 5))[0] = 1
        file["data"][1, :2] = 1


def _virtual(path):
    write_hdf5(path.parent / "part0.h5", poisson((6, 5)))
    layout = h5py.VirtualLayout((2, 6, 5), "int32")
    for i in (0, 1):
        layout[i] = h5py.VirtualSource(f"part{i}.h5", "/entry/data/data", (6, 5))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


def _growing(path):
    with h5py.File(path.parent / "part.h5", "w") as file:
        file.create_dataset("data", data=poisson((2, 6, 5)), maxshape=(None, 6, 5))
    layout = h5py.VirtualLayout((2, 6, 5), "int32", maxshape=(None, 6, 5))
    source = h5py.VirtualSource("part.h5", "data", (2, 6, 5), maxshape=(None, 6, 5))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


def _external(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (6, 5), "u1", external=[("/etc/hostname", 0, 30)])


@pytest.mark.parametrize(
    ("make", "address", "index", "message"),
    [
        (_several, "", None, "must name its dataset, got 2 candidates: /a, /b/image; write .*::/a"),
        (_several, "::/c", None, "must name a dataset of the file, got nothing there; write one of /a, /b/image"),
        (_several, "::", None, "2 candidates"),
        (_group, "", None, "without a numeric dataset of two or more dimensions"),
        (_group, "::/data", None, "must name a dataset, got a group"),
        (_group, "::/data/words", None, "must hold numbers"),
        (_group, "::/data/table", None, "must hold numbers"),
        (_unwritten, "", 3, "must have been written"),
        (_unwritten, "", 1, "must have been written"),
        (_virtual, "", 1, "must have all its parts, got no file .*part1.h5"),
        (_external, "", None, "must hold its own data"),
        (lambda path: write_hdf5(path, poisson((5,))), "", None, "without a numeric dataset"),
        (lambda path: write_hdf5(path, np.zeros((0, 6, 5))), "", None, "must be one image"),
        (lambda path: write_hdf5(path, poisson((5,))), "::/entry/data/data", None, "must be one image"),
    ],
)
def test_hdf5_files_without_the_frame_are_refused(tmp_path, make, address, index, message):
    path = tmp_path / "scan.h5"
    make(path)
    with pytest.raises(FrameError, match=message):
        read_frame(f"{path}{address}", index=index)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_sizes_in_a_bitshuffle_chunk_are_checked(tmp_path, compression):
    path, values = tmp_path / "scan.h5", poisson((201, 163), "uint32")  # several blocks and a rest
    write_hdf5(path, values, chunks=values.shape, **hdf5plugin.Bitshuffle(cname=compression))
    np.testing.assert_array_equal(read_frame(path)["counts"], values[::-1])
    with h5py.File(path) as file:
        start = file["/entry/data/data"].id.get_chunk_info(0).byte_offset
    whole = path.read_bytes()
    for place in range(start, start + 16):  # size of the chunk, of a block, of the first compressed block
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(FrameError, match="must be a complete"):
            read_frame(path)


WRITER = """
import sys, time, h5py
file = h5py.File(sys.argv[1], "a")
file["entry/data/data"][0] += 1
print("written", flush=True)
sys.stdin.readline()
time.sleep(0.3)
file.close()
"""


def test_a_file_that_is_locked_for_a_moment_is_waited_for(tmp_path):
    """Of another process, that opens the file, changes it and closes it."""
    path, values = tmp_path / "scan.h5", poisson((2, 6, 5))
    write_hdf5(path, values)
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"written\n"
        with pytest.raises(FrameError, match="unable to lock file"):
            open_stack(path, wait_s=0)
        with pytest.raises(FrameError, match="unable to lock file"):
            read_frame(path, index=0)  # it does not wait for ever
        writer.stdin.write(b"close\n")
        writer.stdin.flush()
        with closing(open_stack(path, wait_s=60)) as stack:
            np.testing.assert_array_equal(stack.read(0)[0], values[0] + 1)


def test_what_was_written_of_a_partial_scan_is_read(tmp_path):
    _unwritten(tmp_path / "scan.h5")
    assert read_frame(tmp_path / "scan.h5", index=0)["counts"].sum() == 30
    _virtual(tmp_path / "virtual.h5")
    np.testing.assert_array_equal(read_frame(tmp_path / "virtual.h5", index=0)["counts"], poisson((6, 5))[::-1])
    _growing(tmp_path / "growing.h5")
    np.testing.assert_array_equal(read_frame(tmp_path / "growing.h5", index=1)["counts"], poisson((2, 6, 5))[1, ::-1])
    (tmp_path / "part.h5").unlink()
    with pytest.raises(FrameError, match="must be one image"):  # HDF5 itself lets the dataset shrink
        read_frame(tmp_path / "growing.h5", index=1)
