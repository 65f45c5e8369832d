"""What steering costs on this machine: every method, every way to compute it, in turns.

Usage: python benchmarks/steering.py [--quick] [--rows TEXT] [--json FILE] [--device cuda]

A row is a method on a velocity network of four layers of 512, ten Euler steps, and a critic of E
members as large. ``ratio`` is its median over that of ``off`` with the same engine, threads and
configuration; ``bound`` what that ratio would be if only network passes took time, counted in a
run of the readable loop (passes of ``off``: 10); ``r/b`` their quotient. An engine that skips work
the readable loop does, as the way back through members that are not the minimum, can stay below
its bound. Percentiles of few calls say little: ``n`` is their number. ``first s`` includes what is
compiled; ``differs`` is the largest difference from the readable loop, relative.

Rows are measured in turns, a few calls at a time, so that whatever else the machine does hits all.
Threads are processes of their own, each held to as many CPUs. Ctrl-C prints what there is. JAX is
optional: pip install jax.
"""

import argparse
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from qsteer_ros.replay.arms import MODES  # noqa: E402  (needs no torch)

CHUNKS = ((5, 5), (50, 14))
MEMBERS = (2, 10)
BATCHES = (1, 256)
METHODS = (*(mode for mode in MODES if mode != "dsrl"), "rtc+qgf")
"""Mode dsrl is the loop of off, from other noise."""
ENGINES = ("eager", "torch.compile", "compiled", "jax")
HEAD = (
    f"{'chunk':6} {'E':>2} {'B':>3} {'thr':>3} {'method':14} {'engine':13} {'p50':>8} {'p95':>8} "
    f"{'p99':>8} {'min':>8} {'ratio':>6} {'bound':>6} {'r/b':>5} {'fwd':>6} {'bwd':>6} {'n':>4} "
    f"{'first s':>7} differs"
)


class Worker:
    """A process that measures with some number of threads."""

    def __init__(self, threads):
        """Start it."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
            ),
        }
        self.threads = threads
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "steering_worker.py"), str(threads)],
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


def measure(workers, configuration, arguments, say):
    """Rows of one configuration: chunk, members and batch; what is there when interrupted."""
    chunk, members, batch = configuration
    name = f"{chunk[0]}x{chunk[1]} E {members} B {batch}"
    rows = {}
    for worker in workers:
        say(f"{name}: preparing, {worker.threads} threads")
        prepared = worker.ask(
            chunk=chunk, members=members, batch=batch, methods=arguments.methods,
            engines=arguments.engines,
        )  # fmt: skip
        for key, facts in prepared.items():
            method, engine = key.split(" ", 1)
            rows[worker, method, engine] = {
                "chunk": f"{chunk[0]}x{chunk[1]}", "members": members, "batch": batch,
                "threads": worker.threads, "method": method, "engine": engine, "times": [],
                **facts,
            }  # fmt: skip
    spent = dict.fromkeys(rows, 0.0)
    interrupted = False
    try:
        for turn in itertools.count():
            due = [key for key in rows if spent[key] < arguments.seconds or turn < 3]
            if not due:
                break
            for key in due:
                say(f"{name}: turn {turn + 1}, {len(due)} of {len(rows)} rows")
                worker, method, engine = key
                so_far = rows[key]["times"]
                typical = float(np.median(so_far)) if so_far else 0.0
                start = time.perf_counter()
                so_far += worker.ask(
                    method=method, engine=engine, count=5 if 0.0 < typical < 20.0 else 1,
                    warm=typical < 300.0,
                )["times"]  # fmt: skip
                spent[key] += time.perf_counter() - start
    except KeyboardInterrupt:
        interrupted = True
    say("")
    return [row for row in rows.values() if row["times"]], interrupted


def finish(rows):
    """Percentiles, ratios and bounds."""
    offs = {_place(row): row for row in rows if row["method"] == "off"}
    for row in rows:
        times = row.pop("times")
        row["n"], row["min_ms"] = len(times), min(times)
        for share in (50, 95, 99):
            row[f"p{share}_ms"] = float(np.percentile(times, share))
    for row in rows:
        off = offs.get(_place(row))
        if off is not None:
            row["ratio"] = row["p50_ms"] / off["p50_ms"]
            row["bound"] = row["total"] / off["total"]
            row["ratio_over_bound"] = row["ratio"] / row["bound"]
    return rows


def _place(row):
    return tuple(row[name] for name in ("chunk", "members", "batch", "threads", "engine"))


def as_text(row):
    """One line of the table."""
    passes = row["passes"]
    forward = passes["field_forward"] + passes["critic_forward"]
    backward = passes["field_backward"] + passes["critic_backward"]
    ratio, bound, quotient = (
        f"{row[name]:.2f}" if name in row else "-"
        for name in ("ratio", "bound", "ratio_over_bound")
    )
    return (
        f"{row['chunk']:6} {row['members']:2} {row['batch']:3} {row['threads']:3} "
        f"{row['method']:14} {row['engine']:13} {row['p50_ms']:8.3f} {row['p95_ms']:8.3f} "
        f"{row['p99_ms']:8.3f} {row['min_ms']:8.3f} {ratio:>6} {bound:>6} {quotient:>5} "
        f"{forward:6.0f} {backward:6.0f} {row['n']:4} {row['first_s']:7.2f} {row['differs']:.0e}"
    )


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


def on_cuda(arguments):
    """The rows of ``--device cuda``, from `cuda_rows`."""
    import cuda_rows

    modes = [name for name in cuda_rows.MODES if name in arguments.methods]
    rows = cuda_rows.measure(
        configurations=arguments.configurations, modes=modes, jax="jax" in arguments.engines
    )
    cuda_rows.decisions()
    return rows


def parsed():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5x5, E 2, batch 1, no torch.compile")
    parser.add_argument("--rows", default="", help="comma-separated methods and engines to keep")
    parser.add_argument("--seconds", type=float, default=1.5, help="per row (at least 3 calls)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--chunks", default="5x5,50x14", help="H x A")
    parser.add_argument("--members", default="2,10", help="E")
    parser.add_argument("--batches", default="1,256", help="chunks made together")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.rows.split(",") if name]
    unknown = [name for name in wanted if name not in METHODS + ENGINES]
    if unknown:
        parser.error(f"--rows must be of {', '.join(METHODS + ENGINES)}: got {unknown[0]}")
    arguments.methods = [name for name in METHODS if name in wanted] or list(METHODS)
    if "off" not in arguments.methods:
        arguments.methods.insert(0, "off")  # what ratios refer to
    arguments.engines = [name for name in ENGINES if name in wanted] or list(ENGINES)
    if importlib.util.find_spec("jax") is None and "jax" in arguments.engines:
        print("JAX is not installed: its rows are left out. pip install jax")
        arguments.engines.remove("jax")
    sizes = [tuple(map(int, text.split("x"))) for text in arguments.chunks.split(",")]
    counts = [[int(n) for n in text.split(",")] for text in (arguments.members, arguments.batches)]
    arguments.configurations = list(itertools.product(sizes, *counts))
    if arguments.quick:
        if not wanted:
            arguments.engines.remove("torch.compile")
        arguments.configurations, arguments.seconds = [((5, 5), 2, 1)], 0.5
    return arguments


def main():
    """Measure and print."""
    arguments = parsed()
    facts = {"command": " ".join(["python", *sys.argv]), **machine()}
    print("  ".join(f"{name} {value}" for name, value in facts.items()))
    rows = on_cuda(arguments) if arguments.device == "cuda" else on_cpu(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))


def on_cpu(arguments):
    """All configurations, each printed when it is done."""
    threads = [int(count) for count in arguments.threads.split(",")]
    available = len(os.sched_getaffinity(0))
    workers = [Worker(count) for count in threads if count <= available]
    for count in threads:
        if count > available:
            print(f"{count} threads need as many CPUs: this process has {available}. Left out.")
    interactive, found = sys.stderr.isatty(), []

    def say(text):
        if interactive:
            print(f"\r{text:70}", end="" if text else "\r", file=sys.stderr, flush=True)

    print(HEAD, flush=True)
    try:
        for configuration in arguments.configurations:
            rows, interrupted = measure(workers, configuration, arguments, say)
            rows = finish(rows)
            rows.sort(key=lambda row: (row["threads"], METHODS.index(row["method"])))
            found += rows
            for row in rows:
                print(as_text(row), flush=True)
            if interrupted:
                break
    except KeyboardInterrupt:
        pass
    finally:
        for worker in workers:
            worker.stop()
    return found


if __name__ == "__main__":
    main()
