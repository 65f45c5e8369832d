"""The thread that takes pictures; the pictures are fakes."""

import threading

import numpy as np
import pytest

from qsteer_ros.sim.filming import Film

WAIT_S = 10.0


def picture(camera, qpos):
    return np.full((1, 1, 3), int(qpos[0]), dtype=np.uint8)


def test_every_state_is_shown_once_in_order_with_its_own_stamp():
    seen = []
    film = Film(picture, lambda stamp_ns, frames: seen.append((stamp_ns, frames)))
    for k in range(20):
        film.take(k * 50, np.array([float(k)]), ["front", "wrist"])
    film.finish()
    film.stop()
    assert [stamp_ns for stamp_ns, _ in seen] == [50 * k for k in range(20)]
    for k, (_, frames) in enumerate(seen):
        assert {name: image[0, 0, 0] for name, image in frames.items()} == {"front": k, "wrist": k}


def test_the_next_state_waits_for_the_picture_in_work():
    go_on, taken = threading.Event(), threading.Event()

    def slow(camera, qpos):
        assert go_on.wait(WAIT_S)
        return picture(camera, qpos)

    film = Film(slow, lambda stamp_ns, frames: None)
    film.take(0, np.zeros(1), ["front"])  # does not wait

    def second():
        film.take(1, np.zeros(1), ["front"])
        taken.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not taken.wait(0.05)
    go_on.set()
    assert taken.wait(WAIT_S)
    thread.join()
    film.stop()


def test_all_pictures_and_the_clean_up_happen_in_one_thread_of_their_own():
    threads = set()

    def note(*_):
        threads.add(threading.get_ident())
        return np.zeros((1, 1, 3), dtype=np.uint8)

    film = Film(note, note, note)
    for k in range(3):
        film.take(k, np.zeros(1), ["front"])
    film.stop()
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_no_camera_means_no_work():
    film = Film(picture, lambda *_: pytest.fail("nothing was asked for"))
    film.take(0, np.zeros(1), [])
    film.finish()
    film.stop()


def test_an_error_while_rendering_reaches_whoever_asks_next():
    def broken(camera, qpos):
        raise RuntimeError("the GL context is gone")

    film = Film(broken, lambda *_: None)
    film.take(0, np.zeros(1), ["front"])
    with pytest.raises(RuntimeError, match="context is gone"):
        film.take(1, np.zeros(1), ["front"])
    film.stop()
