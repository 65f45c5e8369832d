"""Camera frames as JPEG bytes, the same on every side: simulator, policy, log and training.

Chroma is not subsampled (4:4:4) and the accurate integer transform is used in both directions, so
that the same bytes decode to the same pixels wherever this package runs with the same library.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from qsteer_ros.errors import DataError
from qsteer_ros.types import Image

#: Encoding -> channels, and the order that makes them RGB.
_RGB_ORDER = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}


def encode_jpeg(image: Image, quality: int = 95) -> bytes:
    """Compress one frame.

    Args:
        image: (height, width, 3) uint8 RGB.
        quality: JPEG quality, 1 to 100.

    Raises:
        DataError: The image has another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(
            f"an image to encode must be (height, width, 3) uint8 RGB: got {image.shape} "
            f"{image.dtype}."
        )
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image),
        quality=quality,
        colorspace="RGB",
        colorsubsampling="444",
        fastdct=False,
    )
    return data


def decode_jpeg(data: bytes | bytearray | memoryview) -> Image:
    """Decompress one frame.

    Returns:
        (height, width, 3) uint8 RGB, a new array.

    Raises:
        DataError: The bytes are not a complete JPEG image.
    """
    raw = bytes(data)
    try:
        if not raw.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise ValueError("the end marker is missing")
        image: Image = simplejpeg.decode_jpeg(raw, colorspace="RGB", fastdct=False)
    except ValueError as error:
        raise DataError(
            f"a camera frame must be a complete JPEG image: {len(raw)} bytes, {error}. "
            "Check the camera driver's transport, or skip this frame."
        ) from error
    return image


def decode_raw(
    data: NDArray[np.uint8], *, height: int, width: int, step: int, encoding: str
) -> Image:
    """Pixels of an uncompressed frame.

    Args:
        data: Rows one after the other, (height * step,) uint8.
        height: Rows.
        width: Pixels per row.
        step: Bytes per row, padding included.
        encoding: ``rgb8``, ``bgr8``, ``rgba8``, ``bgra8`` or ``mono8``.

    Returns:
        (height, width, 3) uint8 RGB, a new array.

    Raises:
        DataError: Another encoding, or sizes and data disagree.
    """
    if encoding not in _RGB_ORDER:
        raise DataError(
            f"raw frames must be one of {', '.join(sorted(_RGB_ORDER))}: got '{encoding}'. "
            "Change the camera driver's encoding."
        )
    channels, order = _RGB_ORDER[encoding]
    if width < 1 or step < width * channels or data.size != step * height:
        raise DataError(
            f"a {width}x{height} {encoding} frame with rows of {step} bytes must have "
            f"{step * height}: got {data.size}. Check the camera driver."
        )
    pixels = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    image: Image = np.ascontiguousarray(pixels[..., list(order)])
    return image
