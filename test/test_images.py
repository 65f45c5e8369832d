from __future__ import annotations

import numpy as np
import pytest

from qsteer_ros.errors import DataError
from qsteer_ros.replay.images import decode_jpeg, decode_raw, encode_jpeg


def picture(height: int = 96, width: int = 144) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 2, columns, (rows + columns) % 256], axis=-1).astype(np.uint8)


def test_a_frame_survives_within_a_few_grey_levels_and_keeps_its_colour_order():
    image = picture()
    decoded = decode_jpeg(encode_jpeg(image))
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert decode_jpeg(encode_jpeg(red))[8, 8].tolist() == pytest.approx([254, 0, 0], abs=2)
    smooth = np.abs(decoded.astype(int) - image)[:, :100]
    assert np.percentile(smooth, 99) <= 6


def test_a_one_pixel_wide_colour_line_keeps_its_colour_because_chroma_is_not_subsampled():
    image = np.full((32, 32, 3), 128, np.uint8)
    image[:, 16] = (255, 0, 0)
    line = decode_jpeg(encode_jpeg(image))[16, 16].astype(int)
    assert line[0] > 230
    assert line[1] < 30


def test_the_same_bytes_give_the_same_pixels_and_the_same_pixels_the_same_bytes():
    image = picture()
    data = encode_jpeg(image)
    assert encode_jpeg(image.copy()) == data
    assert np.array_equal(decode_jpeg(data), decode_jpeg(memoryview(data)))


@pytest.mark.parametrize("keep", [0, 1, 20, 400, -1])
def test_a_truncated_frame_is_refused(keep):
    data = encode_jpeg(picture())[:keep]
    with pytest.raises(DataError, match="must be a complete JPEG image"):
        decode_jpeg(data)


def test_an_image_of_the_wrong_shape_or_type_is_not_encoded():
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(DataError, match=r"must be \(height, width, 3\) uint8 RGB"):
            encode_jpeg(bad)


@pytest.mark.parametrize(
    ("encoding", "pixel"),
    [
        ("rgb8", (1, 2, 3)),
        ("bgr8", (3, 2, 1)),
        ("rgba8", (1, 2, 3, 9)),
        ("bgra8", (3, 2, 1, 9)),
        ("mono8", (7,)),
    ],
)
def test_raw_frames_of_every_encoding_become_rgb_and_padding_is_left_out(encoding, pixel):
    rows = np.full((2, 3, len(pixel)), pixel, np.uint8).reshape(2, -1)
    data = np.pad(rows, ((0, 0), (0, 5)), constant_values=255).ravel()
    step = rows.shape[1] + 5
    image = decode_raw(data, height=2, width=3, step=step, encoding=encoding)
    assert image.tolist() == [[[1, 2, 3] if len(pixel) > 1 else [7, 7, 7]] * 3] * 2


def test_a_raw_frame_whose_size_and_data_disagree_is_refused():
    with pytest.raises(DataError, match="must have 12: got 11"):
        decode_raw(np.zeros(11, np.uint8), height=2, width=2, step=6, encoding="rgb8")
    with pytest.raises(DataError, match=r"raw frames must be one of .*: got 'yuv422'"):
        decode_raw(np.zeros(12, np.uint8), height=2, width=2, step=6, encoding="yuv422")
