"""Training steps per second on this machine: the package's trainer against JAX, in turns.

Usage: python benchmarks/training.py [--quick] [--tasks TEXT] [--batches 256,1024] [--json FILE]
       [--device cuda [--tf32]]

A task is ``bc`` (flow matching) or ``critic`` (implicit Q-learning: Q of E members, V, target
networks) with L layers of some width, written ``critic 4x512 E10``; Adam, chunks of 5 x 5, 28
features, batches drawn from 100000 rows. Engines:

``ours``          `Trainer.step`: batch, losses, gradients, Adam, target networks
``cuda graph``    the same captured and replayed, with ``--device cuda``
``whole run``     what ``qsteer train`` does around it too: progress bar, scalars, saved history
``jax``           one jit-compiled function that does the same, all members as one product
``jax unrolled``  the same with one product per member

``differs`` is the largest relative difference of a loss from ours in 20 steps from the same
weights on the same batches. ``cpu`` is the processor's time per step, which says more than the
wall where other programs run; ``ratio`` compares steps per second with the faster of JAX's. Every
engine is measured in windows, one window of each in turn, so that whatever else the machine does
hits all; the middle window counts. JAX is optional: pip install jax.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
from workers import HERE, Worker, machine

sys.path.insert(0, str(HERE.parent))

TASKS = ("bc 3x256", "bc 4x512", "critic 3x256 E2", "critic 4x512 E2", "critic 4x512 E10")
ENGINES = ("ours", "cuda graph", "whole run", "jax", "jax unrolled")
HEAD = (
    f"{'task':17} {'B':>4} {'thr':>3} {'engine':13} {'steps/s':>8} {'ms':>8} {'cpu ms':>8} "
    f"{'ratio':>6} {'cpu':>6} {'n':>3} differs"
)


def task_of(text, batch, device, *, tf32=False):
    """What a name such as ``critic 4x512 E10`` stands for."""
    match = re.fullmatch(r"(bc|critic) (\d+)x(\d+)(?: E(\d+))?", text)
    if match is None or (match[1] == "critic") != bool(match[4]):
        raise SystemExit(f"a task is written 'bc 3x256' or 'critic 3x256 E2': got '{text}'.")
    return {
        "program": match[1], "layers": int(match[2]), "width": int(match[3]),
        "members": int(match[4] or 0), "batch": batch, "device": device, "tf32": tf32,
    }  # fmt: skip


def measure(workers, name, batch, arguments, say):
    """Rows of one task and batch, one per number of threads and engine."""
    rows = {}
    for worker in workers:
        say(f"{name}, batch {batch}: preparing, {worker.threads} threads")
        task = task_of(name, batch, arguments.device, tf32=arguments.tf32)
        for engine, facts in worker.ask(task=task, engines=arguments.engines).items():
            rows[worker, engine] = {
                "task": name, "batch": batch, "threads": worker.threads, "engine": engine,
                "wall_s": [], "cpu_s": [], **facts,
            }  # fmt: skip
    for turn in range(arguments.windows):
        for (worker, engine), row in rows.items():
            say(f"{name}, batch {batch}: window {turn + 1} of {arguments.windows}, {engine}")
            typical = min(row["wall_s"], default=None)
            count = 2 if typical is None else max(2, round(arguments.seconds / typical))
            found = worker.ask(engine=engine, count=count)
            for clock in ("wall_s", "cpu_s"):
                row[clock].append(found[clock])
    say("")
    return list(rows.values())


def finish(rows):
    """Middle windows and ratios."""
    for row in rows:
        row["n"] = len(row["wall_s"])
        for clock in ("wall_s", "cpu_s"):
            row[clock] = float(np.median(row[clock]))
    for row in rows:
        theirs = [
            other for other in rows
            if other["engine"].startswith("jax") and other["threads"] == row["threads"]
        ]  # fmt: skip
        for clock, ratio in (("wall_s", "ratio"), ("cpu_s", "cpu_ratio")):
            fastest = min((other[clock] for other in theirs), default=None)
            row[ratio] = None if fastest is None else fastest / row[clock]
    return rows


def as_text(row):
    """One line of the table."""
    ratio, cpu_ratio = ("-" if row[k] is None else f"{row[k]:.2f}" for k in ("ratio", "cpu_ratio"))
    differs = "" if row["differs"] is None else f"{row['differs']:.0e}"
    return (
        f"{row['task']:17} {row['batch']:4} {row['threads']:3} {row['engine']:13} "
        f"{1.0 / row['wall_s']:8.1f} {1e3 * row['wall_s']:8.2f} {1e3 * row['cpu_s']:8.2f} "
        f"{ratio:>6} {cpu_ratio:>6} {row['n']:3} {differs}"
    )


def parsed():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three small tasks, one thread")
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas")
    parser.add_argument("--engines", default=",".join(ENGINES), help="with commas")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--batches", default="256", help="rows per step")
    parser.add_argument("--windows", type=int, default=7, help="per engine")
    parser.add_argument("--seconds", type=float, default=0.4, help="per window")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tf32", action="store_true", help="on a GPU: products in TF32, of all")
    arguments = parser.parse_args()
    arguments.engines = [name.strip() for name in arguments.engines.split(",")]
    unknown = [name for name in arguments.engines if name not in ENGINES]
    if unknown:
        parser.error(f"--engines must be of {', '.join(ENGINES)}: got {unknown[0]}")
    if "ours" not in arguments.engines:
        arguments.engines.insert(0, "ours")  # what losses are compared with
    if importlib.util.find_spec("jax") is None:
        print("JAX is not installed: its rows are left out. pip install jax")
        arguments.engines = [name for name in arguments.engines if not name.startswith("jax")]
    if arguments.device == "cpu" and "cuda graph" in arguments.engines:
        arguments.engines.remove("cuda graph")
    if arguments.device != "cpu":
        arguments.threads = "1"
    if arguments.quick:
        arguments.tasks, arguments.threads = "bc 3x256,critic 3x256 E2", "1"
    return arguments


def main():
    """Measure and print."""
    arguments = parsed()
    facts = {"command": " ".join(["python", *sys.argv]), **machine()}
    print("  ".join(f"{name} {value}" for name, value in facts.items()))
    available = len(os.sched_getaffinity(0))
    threads = [int(count) for count in arguments.threads.split(",")]
    for count in threads:
        if count > available:
            print(f"{count} threads need as many CPUs: this process has {available}. Left out.")
    workers = [Worker(count, "training_worker.py") for count in threads if count <= available]
    interactive, found = sys.stderr.isatty(), []

    def say(text):
        if interactive:
            print(f"\r{text:70}", end="" if text else "\r", file=sys.stderr, flush=True)

    print(HEAD, flush=True)
    try:
        names = [name.strip() for name in arguments.tasks.split(",")]
        batches = [int(count) for count in arguments.batches.split(",")]
        for name, batch in itertools.product(names, batches):
            rows = finish(measure(workers, name, batch, arguments, say))
            found += sorted(rows, key=lambda row: row["threads"])
            for row in found[-len(rows) :]:
                print(as_text(row), flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        for worker in workers:
            worker.stop()
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
