"""Reading detector frames: every format, what counts as valid, and that nothing incomplete or foreign gets through."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys

import h5py
import hdf5plugin
import numpy as np
import pytest
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from scatterflow.config.instrument import InstrumentConfig
from scatterflow.errors import FrameError
from scatterflow.frames import file_name, hot_pixels, open_stack, read_frame, read_frames, short_name

PILATUS_COMMENTS = """# Detector: PILATUS 100K
# 2024-10-26T01:38:05.208
# Pixel_size 172e-6 m x 172e-6 m
# Exposure_time 0.9950000 s
# Count_cutoff 5000 counts"""


def poisson(shape=(23, 17), dtype="int32", mean=60.0):
    return np.random.default_rng(1).poisson(mean, shape).astype(dtype)


def write_cbf(path, values, header=None):
    CbfImage(data=values, header=header).write(str(path))


def write_hdf5(path, values, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("/entry/data/data", data=values, **options)


WRITERS = {
    "cbf": write_cbf,
    "tif": lambda path, values: TifImage(data=values).write(str(path)),
    "strips.tif": lambda path, values: Image.fromarray(values).save(path, tiffinfo={278: 4}),
    "edf": lambda path, values: EdfImage(data=values).write(str(path)),
    "h5": write_hdf5,
    "lz4.h5": lambda path, values: write_hdf5(path, values, chunks=values.shape, **hdf5plugin.Bitshuffle(cname="lz4")),
}
TYPES = {"cbf": ["int32", "uint16"], "strips.tif": ["uint16", "float32"]}


@pytest.mark.parametrize(
    ("ending", "dtype"), [(e, t) for e in WRITERS for t in TYPES.get(e, ["int32", "uint16", "uint32", "float32"])]
)
def test_every_format_gives_the_values_with_the_lowest_row_first(tmp_path, ending, dtype):
    path, values = tmp_path / f"frame.{ending}", poisson(dtype=dtype)
    WRITERS[ending](path, values)
    frame = read_frame(path)
    assert frame["counts"].dims == frame["mask"].dims == ("z", "y")
    assert frame["counts"].dtype == np.float32
    assert frame["mask"].values.all()
    np.testing.assert_array_equal(frame["counts"], np.flipud(values))
    assert frame.attrs["file"] == path.name
    np.testing.assert_array_equal(frame["z"], np.arange(len(values)) + 0.5)


@settings(max_examples=60, deadline=None)
@given(values=arrays("int32", (5, 4), elements=st.integers(-(2**29), 2**29) | st.integers(-2, 300)))
def test_cbf_steps_of_every_length_are_decoded(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("cbf") / "a.cbf"
    write_cbf(path, values)
    np.testing.assert_array_equal(open_stack(path).read(0)[0], values)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_cut_anywhere_is_refused_or_complete(tmp_path, ending):
    path, values = tmp_path / f"frame.{ending}", poisson()
    WRITERS[ending](path, values if ending != "strips.tif" else values.astype("uint16"))
    whole, complete = path.read_bytes(), read_frame(path)["counts"].values
    refused = 0
    for size in np.unique(np.linspace(0, len(whole) - 1, 150).astype(int)):
        path.write_bytes(whole[:size])
        ((_, result),) = read_frames(path)
        if isinstance(result, FrameError):
            assert "\n" not in str(result)
            assert result.status == "unreadable"
            refused += 1
        else:
            np.testing.assert_array_equal(result["counts"], complete)
    assert refused > 100


def test_a_damaged_cbf_contradicts_its_checksum(tmp_path):
    path = tmp_path / "frame.cbf"
    write_cbf(path, poisson())
    whole = path.read_bytes()
    start = whole.index(b"\x0c\x1a\x04\xd5") + 4
    for place in range(start, start + 391, 10):  # one byte per pixel, first of all
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FrameError, match="contradict the checksum"):
            read_frame(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"X-Binary-Size:", b"X-Binary-Nize:", "without X-Binary-Size"),
        (b"x-CBF_BYTE_OFFSET", b"x-CBF_PACKED     ", "only x-CBF_BYTE_OFFSET"),
        (b"Second-Dimension: 23", b"Second-Dimension: 2300000000000000", "pixels in"),
        (b"Second-Dimension: 23", b"Second-Dimension: 0", "pixels in"),
        (b"signed 32-bit integer", b"signed 32-bit real IEEE", "without X-Binary-Element-Type"),
        (b"Content-MD5: ", b"Content-MD5: !!", "must be a complete"),
    ],
)
def test_a_cbf_header_that_makes_no_sense_is_refused(tmp_path, old, new, message):
    path = tmp_path / "frame.cbf"
    write_cbf(path, poisson())
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(FrameError, match=message):
        read_frame(path)


def test_short_cbf_data_without_checksum_are_refused(tmp_path):
    path = tmp_path / "frame.cbf"
    write_cbf(path, poisson())
    whole = path.read_bytes().replace(b"Content-MD5", b"Content-XXX")
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_frame(path)["counts"], poisson()[::-1])  # the checksum is optional
    start = whole.index(b"\x0c\x1a\x04\xd5") + 4
    path.write_bytes(whole[:start] + b"\x80" + whole[start + 1 :])  # the first pixels merge into a step of 16 bits
    with pytest.raises(FrameError, match="389 of 391 pixels"):
        read_frame(path)


def test_invalid_pixels_are_masked_and_counted_by_cause(tmp_path):
    values = poisson((40, 30), "float64")
    values[0, :3] = np.nan, np.inf, -np.inf
    values[1, :4] = -1, -2, -1e30, -1
    values[2, :2] = 5000, 1e300
    values[20, 20] = 4900  # hot: far above its neighbours, below saturation
    path = tmp_path / "frame.h5"
    write_hdf5(path, values)
    exclude = np.zeros(values.shape, "uint8")
    exclude[30:32] = 1
    write_hdf5(tmp_path / "mask.h5", exclude)
    instrument = InstrumentConfig(shape=(40, 30), masked=({"z": (0, 2), "y": (0, 30)},), saturation=5000)
    frame = read_frame(path, instrument=instrument, mask=tmp_path / "mask.h5")
    causes = {key.removeprefix("masked_"): n for key, n in frame.attrs.items() if key.startswith("masked_")}
    assert causes == {"nonfinite": 3, "negative": 4, "saturated": 2, "instrument": 60, "file": 60, "hot": 1}
    assert sum(causes.values()) == (~frame["mask"]).sum()
    flipped = frame["mask"].values[::-1]
    assert not flipped[0, :3].any()
    assert not flipped[30:32].any()
    assert not flipped[-2:].any()  # the instrument's rows 0 and 1 are the lowest: the last of the file
    assert not flipped[20, 20]
    assert (frame["counts"].values[~frame["mask"].values] == 0).all()
    assert np.isfinite(frame["counts"]).all()


@pytest.mark.parametrize(
    ("dtype", "saturation", "limit"), [("uint16", None, 65535), ("int32", None, 2**31 - 1), ("uint16", 200.0, 200)]
)
def test_saturation_is_the_instruments_or_the_types(tmp_path, dtype, saturation, limit):
    values = poisson((6, 5), dtype)
    values[3, 2:4] = limit, limit - 1
    values[2:5, 1:5] = np.maximum(values[2:5, 1:5], limit // 2)  # a peak, no hot pixel
    path = tmp_path / "frame.h5"
    write_hdf5(path, values)
    frame = read_frame(path, instrument=InstrumentConfig(shape=(6, 5), saturation=saturation))
    assert frame.attrs["saturation"] == limit
    np.testing.assert_array_equal(frame["mask"], values[::-1] < limit)


def test_pilatus_header_gives_saturation_and_metadata(tmp_path):
    values = poisson()
    values[3:6, 3:6] = 4999
    values[4, 4] = 5000
    path = tmp_path / "frame.cbf"
    header = {
        "_array_data.header_convention": '"PILATUS_1.2"',
        "_array_data.header_contents": f"\r\n;\r\n{PILATUS_COMMENTS}\r\n;",
    }
    write_cbf(path, values, header)
    frame = read_frame(path)
    assert frame.attrs["masked_saturated"] == 1
    assert frame.attrs["saturation"] == 5000
    assert frame.attrs["exposure_time_s"] == 0.995
    assert frame.attrs["pixel_mm"] == pytest.approx(0.172)
    assert frame.attrs["timestamp"] == "2024-10-26T01:38:05.208"
    assert frame.attrs["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=40, deadline=None)
@given(
    counts=arrays("float32", (9, 8), elements=st.sampled_from([0.0, 1.0, 9.0, 99.0, 101.0, 1e4, 1e5])),
    valid=arrays(bool, (9, 8)),
)
def test_hot_pixels_agree_with_a_rank_filter(counts, valid):
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    largest = ndimage.maximum_filter(np.where(valid, counts, 0), footprint=ring, mode="constant")
    neighbours = ndimage.convolve(valid.astype(int), ring, mode="constant")
    expected = valid & (counts > 10 * (largest + 10)) & (neighbours >= 3)
    np.testing.assert_array_equal(hot_pixels(counts, valid), expected)


@pytest.mark.parametrize("mean", [0.01, 0.3, 3.0, 1000.0])
def test_counting_noise_and_sharp_peaks_are_not_hot(mean):
    rng = np.random.default_rng(2)
    z, y = np.mgrid[:400, :400]
    peak = 1e6 * np.exp(-((z - 200.2) ** 2 + (y - 99.7) ** 2) / (2 * 0.5**2))  # 1.2 pixels full width: no sharper spot
    counts = rng.poisson(mean + peak).astype("float32")
    assert not hot_pixels(counts, np.ones(counts.shape, bool)).any()
    counts[10, 20] = 100 * (mean + 5)
    assert np.argwhere(hot_pixels(counts, np.ones(counts.shape, bool))).tolist() == [[10, 20]]


@given(
    st.lists(st.from_regex(r"[a-z0-9_ .]{0,9}[a-z0-9]", fullmatch=True), max_size=3),
    st.from_regex(r"[a-z0-9_]{1,9}\.(h5|tif|cbf)", fullmatch=True),
    st.sampled_from(["", "::/entry/data/data", "[3]", "::/entry/data/data[12]"]),
)
def test_names_of_frames_keep_file_and_number(folders, file, inside):
    name = "/".join(["", *folders, file]) + inside
    assert short_name(name) == file + inside
    assert file_name(name) == file_name(short_name(name)) == file


@pytest.mark.parametrize("ending", ["tif", "edf"])
def test_stacks_of_tiff_and_edf(tmp_path, ending):
    path, values = tmp_path / f"scan.{ending}", poisson((3, 6, 5), "uint16")
    if ending == "tif":
        first, *others = [Image.fromarray(image) for image in values]
        first.save(path, save_all=True, append_images=others)
    else:
        stack = EdfImage(data=values[0])
        for image in values[1:]:
            stack.append_frame(data=image)
        stack.write(str(path))
    for index, image in enumerate(values):
        np.testing.assert_array_equal(read_frame(path, index=index)["counts"], image[::-1])
    with pytest.raises(FrameError, match="must be an integer from 0 to 2, got none for a stack of 3"):
        read_frame(path)


def _edf_elsewhere(path):
    WRITERS["edf"](path, poisson())
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"HeaderID = ", b"EDF_BinaryFileName = data.bin ;\nH = ", 1))


def _tiff_circle(path):
    first = Image.fromarray(poisson().astype("uint16"))
    first.save(path)
    blob = bytearray(path.read_bytes())
    start = int.from_bytes(blob[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(blob[start : start + 2], "little")
    blob[end : end + 4] = blob[4:8]
    path.write_bytes(blob)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none.cbf", lambda path: None, "must exist, got no such file"),
        ("folder", lambda path: path.mkdir(), "got a folder"),
        ("empty.cbf", lambda path: path.touch(), "got an empty file"),
        ("pipe", os.mkfifo, "got a device or pipe"),
        ("text.tif", lambda path: path.write_text("no image\n"), "got a file that starts with b'no image"),
        ("a" * 300, lambda path: None, "must be readable"),
        ("objects.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "that starts with .*NUMPY"),
        ("plain.npy", lambda path: np.save(path, poisson()), "that starts with .*NUMPY"),
        ("a.cbf.gz", lambda path: path.write_bytes(b"\x1f\x8b..."), "got a compressed file; unpack it"),
        ("lzw.tif", lambda p: Image.fromarray(poisson().astype("u2")).save(p, compression="tiff_lzw"), "uncompressed"),
        ("rgb.tif", lambda p: Image.new("RGB", (6, 5), (9, 9, 9)).save(p), "must be one image"),
        ("palette.tif", lambda p: Image.new("P", (6, 5), 9).save(p), "must be one image"),
        ("circle.tif", _tiff_circle, "directories in a circle"),
        ("elsewhere.edf", _edf_elsewhere, "must hold its own data"),
        ("start.edf", lambda path: path.write_text("{ no end"), "must be a complete"),
        ("dtrek.img", lambda path: path.write_text("{\nHEADER_BYTES=  512;\n"), "must be a CBF"),
        ("start.tif", lambda path: path.write_bytes(b"II*\0"), "must be a complete"),
        ("start.cbf", lambda path: path.write_bytes(b"###CBF: VERSION 1.5"), "cut off in its header"),
        ("start.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "must be a complete"),
        ("zero.edf", lambda path: WRITERS["edf"](path, np.zeros((6, 5), "u2")), "zero in every valid pixel"),
    ],
)
def test_bad_files_are_refused_in_one_silent_line(tmp_path, capfd, caplog, name, make, message):
    path = tmp_path / name
    make(path)
    with pytest.raises(FrameError, match=message) as caught:
        read_frame(path)
    assert "\n" not in str(caught.value)
    assert caught.value.status == "unreadable"
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.getLogger("fabio").propagate  # the user's own use of fabio logs as before
    assert not logging.getLogger("fabio").handlers


@pytest.mark.parametrize("path", ["", "nul\0byte", "::/data"])
def test_paths_that_name_no_file_are_refused(path):
    with pytest.raises(FrameError, match="got"):
        read_frame(path)


def test_a_dataset_outside_hdf5_is_refused(tmp_path):
    write_cbf(tmp_path / "frame.cbf", poisson())
    with pytest.raises(FrameError, match="may name a dataset only in an HDF5 file, got CBF"):
        read_frame(f"{tmp_path}/frame.cbf::/data")


def test_a_file_without_read_access_is_refused(tmp_path, as_user):
    path = tmp_path / "frame.cbf"
    write_cbf(path, poisson())
    path.chmod(0)
    code = "import sys, scatterflow.frames as f\ntry: f.read_frame(sys.argv[1])\nexcept f.FrameError as e: print(e)"
    done = subprocess.run([*as_user, sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert "must be readable, got permission denied" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (np.full((6, 5), -1, "int32"), "30 negative"),
        (np.full((6, 5), np.nan, "float32"), "30 nonfinite"),
        (np.full((6, 5), 65535, "uint16"), "30 saturated"),
    ],
)
def test_a_frame_without_valid_pixels_is_masked_out(tmp_path, values, cause):
    write_hdf5(tmp_path / "frame.h5", values)
    with pytest.raises(FrameError, match=rf"must have a valid pixel, got all 30 masked \({cause}\)") as caught:
        read_frame(tmp_path / "frame.h5")
    assert caught.value.status == "masked-out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (23, 18)}, "must have the 23 rows x 18 columns of its instrument, got 23 rows x 17 columns"),
        ({"shape": (17, 23)}, "turned by 90 degrees"),
        ({"shape": (23, 17), "pixel_mm": 0.075}, "must have the pixel size 0.075 mm of its instrument, got 0.172 mm"),
    ],
)
def test_a_frame_of_another_instrument_is_refused(tmp_path, changes, message):
    path = tmp_path / "frame.cbf"
    header = {
        "_array_data.header_convention": '"PILATUS_1.2"',
        "_array_data.header_contents": f"\r\n;\r\n{PILATUS_COMMENTS}\r\n;",
    }
    write_cbf(path, poisson(), header)
    assert read_frame(path, instrument=InstrumentConfig(shape=(23, 17), pixel_mm=0.172))["mask"].all()
    with pytest.raises(FrameError, match=message) as caught:
        read_frame(path, instrument=InstrumentConfig(**changes))
    assert caught.value.status == "wrong-instrument"


def test_a_mask_file_must_fit_and_open(tmp_path):
    write_hdf5(tmp_path / "frame.h5", poisson())
    write_hdf5(tmp_path / "mask.h5", np.zeros((17, 23), "u1"))
    with pytest.raises(FrameError, match="must have the 17 rows x 23 columns of its mask file, got 23 rows x 17"):
        read_frame(tmp_path / "frame.h5", mask=tmp_path / "mask.h5")
    with pytest.raises(FrameError, match="must exist"):
        next(read_frames([tmp_path / "frame.h5"], mask=tmp_path / "none.h5"))


def test_a_bad_frame_does_not_end_a_series(tmp_path):
    good, bad, last = tmp_path / "a.cbf", tmp_path / "b.cbf", tmp_path / "c.h5"
    write_cbf(good, poisson())
    bad.write_bytes(good.read_bytes()[:900])
    stack = poisson((3, 23, 17))
    stack[1] = -1
    write_hdf5(last, stack)
    results = list(read_frames([good, bad, last]))
    assert [getattr(result, "status", "ok") for _, result in results] == ["ok", "unreadable", "ok", "masked-out", "ok"]
    assert [name for name, _ in results][:2] == [str(good), str(bad)]
    assert [name for name, _ in read_frames(str(good))] == [str(good)]
