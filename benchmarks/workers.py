"""Processes that measure with a stated number of threads, and what machine they are on."""

import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Worker:
    """A process that measures with some number of threads."""

    def __init__(self, threads, script):
        """Start ``script``, a file beside this one that calls `serve`."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
            ),
        }
        self.threads = threads
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), str(threads)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **question):
        """One question, one answer."""
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process with {self.threads} threads has died.")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"with {self.threads} threads: {answer['error']}")
        return answer

    def stop(self):
        """End it."""
        self._process.kill()
        self._process.wait()


def serve(answer):
    """In a worker: answer one JSON object per line with one each, until the input ends.

    The process is held to as many CPUs as it has threads, before any library starts threads of
    its own.

    Args:
        answer: Function (question) -> answer, both dictionaries.
    """
    threads = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks decides when to stop
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def machine():
    """What the figures are from."""
    import torch

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "numba", "jax"):
        if importlib.util.find_spec(name):
            versions[name] = __import__(name).__version__
    load = os.getloadavg()[0]
    return {"cpu": model, "cpus": len(os.sched_getaffinity(0)), "load": load, **versions}
