"""Pictures taken beside the physics, in the one thread that owns the GL context."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from qsteer_ros.types import Array, Image

Render = Callable[[str, Array], Image]
OnFrames = Callable[[int, dict[str, Image]], None]


@dataclass(frozen=True)
class _Shot:
    stamp_ns: int
    qpos: Array
    cameras: Collection[str]


class Film:
    """A thread that renders one state while the physics goes on to the next.

    MuJoCo releases the interpreter lock while it draws. At most one state is in work: asking for
    the next one waits for it, so no frame is ever skipped or late by more than one period.

    Args:
        render: Draws a camera's picture of a state; called in the film's thread only.
        on_frames: Gets the stamp and the pictures, in the film's thread.
        close: Called in the film's thread at its end, to free the GL context.
    """

    def __init__(
        self, render: Render, on_frames: OnFrames, close: Callable[[], None] = lambda: None
    ) -> None:
        self._render, self._on_frames, self._close = render, on_frames, close
        self._changed = threading.Condition()
        self._shot: _Shot | None = None
        self._stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="film", daemon=True)
        self._thread.start()

    def take(self, stamp_ns: int, qpos: Array, cameras: Collection[str]) -> None:
        """Have a state rendered, as soon as the previous one is done; waits for that.

        Args:
            stamp_ns: Stamp to hand on.
            qpos: State, (nq,); must not change afterwards.
            cameras: Names; with none, this only waits.

        Raises:
            Exception: What the thread's callbacks raised, once; the film has then ended.
        """
        self.finish()
        if not cameras:
            return
        with self._changed:
            self._shot = _Shot(stamp_ns, qpos, cameras)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until nothing is in work; raises as :meth:`take` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._shot is None or self._error is not None)
            if self._error is not None:
                raise self._error

    def stop(self) -> None:
        """End the thread after the picture in work. May be called twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (shot := self._next()) is not None:
                frames = {name: self._render(name, shot.qpos) for name in shot.cameras}
                self._on_frames(shot.stamp_ns, frames)
                with self._changed:
                    self._shot = None
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._close()

    def _next(self) -> _Shot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._shot is not None or self._stopping)
            return self._shot
