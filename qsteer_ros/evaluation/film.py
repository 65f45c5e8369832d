"""Pictures of episodes: film strips and short animations that need nothing but a browser."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from qsteer_ros.types import Image

SCALE = 2
BAR_PX = 20
GAP_PX = 8
HOLD_FRAMES = 12
INK = (32, 36, 44)
PAPER = (250, 250, 248)
GOOD = (33, 140, 90)
BAD = (184, 66, 54)


def side_by_side(front: Image, wrist: Image) -> Image:
    """Two views of one moment next to each other, at the height of the first; (h, w, 3) uint8."""
    height = front.shape[0]
    width = round(wrist.shape[1] * height / wrist.shape[0])
    scaled = np.asarray(
        Picture.fromarray(wrist).resize((width, height), Picture.Resampling.LANCZOS)
    )
    return np.concatenate([front, scaled], axis=1)


def film_strip(frames: Sequence[Image], *, count: int = 8) -> bytes:
    """``count`` moments of an episode from first to last, in a row.

    Returns:
        A JPEG file.
    """
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
    height, width = chosen[0].shape[:2]
    strip = Picture.new("RGB", (count * (width + 2) - 2, height), PAPER)
    for column, frame in enumerate(chosen):
        strip.paste(Picture.fromarray(frame), (column * (width + 2), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=85)
    return file.getvalue()


def animation(
    panels: Sequence[tuple[str, Sequence[Image], bool]],
    *,
    columns: int = 2,
    every: int = 2,
    frame_ms: int = 100,
) -> bytes:
    """Play episodes beside each other, from the same instant on; a finished one waits.

    Args:
        panels: (caption, frames, whether it succeeded) per episode; frames of one size.
        columns: Panels in a row.
        every: Show each n-th frame.
        frame_ms: Time per shown frame, ms.

    Returns:
        An animated WebP file that repeats for ever.
    """
    shown = [frames[::every] for _, frames, _ in panels]
    length = max(len(frames) for frames in shown) + HOLD_FRAMES
    pictures = []
    for step in range(length):
        tiles = [
            _tile(caption, frames[min(step, len(frames) - 1)], succeeded, step >= len(frames) - 1)
            for (caption, _, succeeded), frames in zip(panels, shown, strict=True)
        ]
        pictures.append(_grid(tiles, columns))
    file = io.BytesIO()
    pictures[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=frame_ms,
        loop=0,
        quality=60,
        method=2,
    )
    return file.getvalue()


def _tile(caption: str, frame: Image, succeeded: bool, over: bool) -> Picture.Image:
    """One panel: caption above, picture below, at the end a border in the outcome's colour."""
    height, width = frame.shape[0] * SCALE, frame.shape[1] * SCALE
    tile = Picture.new("RGB", (width, height + BAR_PX), PAPER)
    tile.paste(
        Picture.fromarray(frame).resize((width, height), Picture.Resampling.BICUBIC), (0, BAR_PX)
    )
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(14)
    draw.text((2, 1), caption, fill=INK, font=font)
    if over:
        colour, word = (GOOD, "success") if succeeded else (BAD, "not reached")
        draw.rectangle((0, BAR_PX, width - 1, height + BAR_PX - 1), outline=colour, width=4)
        draw.text((width - 2, 1), word, fill=colour, font=font, anchor="ra")
    return tile


def _grid(tiles: Sequence[Picture.Image], columns: int) -> Picture.Image:
    columns = min(columns, len(tiles))
    width, height = tiles[0].width + GAP_PX, tiles[0].height + GAP_PX
    rows = -(-len(tiles) // columns)
    grid = Picture.new("RGB", (columns * width - GAP_PX, rows * height - GAP_PX), PAPER)
    for index, tile in enumerate(tiles):
        grid.paste(tile, (index % columns * width, index // columns * height))
    return grid
