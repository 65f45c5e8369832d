"""Milliseconds per picture and per camera, and per second of physics, on this machine.

Usage: python benchmarks/render.py [--frames 200]

Prints one line per camera (median, 99th percentile, CPU time of the process per picture), then
what one simulated second of the arm costs without pictures, then the same as one JSON object. Set
``MUJOCO_GL`` or ``LP_NUM_THREADS`` to try another renderer; what is not set gets the package's
defaults (EGL, the calling thread alone).
"""

import argparse
import json
import os
import time

import numpy as np

from qsteer_ros.sim.scene import CAMERAS
from qsteer_ros.sim.world import World


def measure(work, count):
    """Wall times of ``count`` calls in ms, and CPU ms per call."""
    wall_ms, cpu_s = [], time.process_time()
    for _ in range(count):
        start_ns = time.perf_counter_ns()
        work()
        wall_ms.append((time.perf_counter_ns() - start_ns) * 1e-6)
    return wall_ms, (time.process_time() - cpu_s) * 1e3 / count


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200, help="pictures per camera")
    frames = parser.parse_args().frames
    world = World()
    world.images()  # the first picture makes the GL contexts
    result = {"renderer": os.environ["MUJOCO_GL"], "threads": os.environ["LP_NUM_THREADS"]}
    for name, camera in CAMERAS.items():
        wall_ms, cpu_ms = measure(lambda name=name: world.scene.render(name), frames)
        p50, p99 = np.percentile(wall_ms, [50, 99])
        print(
            f"{name:6} {camera.width}x{camera.height}: {p50:5.1f} ms median, {p99:5.1f} ms p99, "
            f"{cpu_ms:5.1f} ms CPU"
        )
        result[name] = {"p50_ms": p50, "p99_ms": p99, "cpu_ms": cpu_ms}
    wall_ms, _ = measure(lambda: world.advance(50_000_000), 40)
    result["physics_ms_per_s"] = 20 * float(np.median(wall_ms))
    print(f"physics and follower: {result['physics_ms_per_s']:.1f} ms per simulated second")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
