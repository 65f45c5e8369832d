"""Measures for ``benchmarks/steering.py``: one process per number of threads, asked in turns.

Reads one JSON object per line, answers with one each. It is held to as many CPUs as it has
threads, before any library starts threads of its own.
"""

import json
import os
import signal
import sys
import time


def main():
    """Answer until the input ends."""
    threads = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks decides when to stop
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cpus)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    calls = {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = (
                prepare(question, calls) if "members" in question else time_it(question, calls)
            )
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def prepare(question, calls):
    """Make the calls of one configuration, forget the others; first seconds and agreement."""
    import numpy as np
    import steering_engines as engines
    import torch
    from steering_passes import counted

    calls.clear()
    chunk, found = tuple(question["chunk"]), {}
    for method in question["methods"]:
        task = engines.Task(method, chunk, question["members"], question["batch"])
        with torch.no_grad():
            expected = np.asarray(engines.readable(task, *task.parts))
            made = engines.prepared(task, question["engines"])
        one = engines.Task(method, chunk, question["members"], 1)
        one.__dict__["parts"] = task.parts
        passes = counted(*task.parts, lambda *parts, one=one: engines.readable(one, *parts), 1)
        for name, (call, first_s, result) in made.items():
            calls[method, name] = call
            found[f"{method} {name}"] = {
                "first_s": first_s,
                "differs": float(np.abs(result - expected).max() / np.abs(expected).max()),
                "passes": vars(passes),
                "total": passes.total,
            }
    return found


def time_it(question, calls):
    """Wall times of some calls of one row, ms; with ``warm`` after one that is not counted."""
    import torch

    call = calls[question["method"], question["engine"]]
    times = []
    with torch.no_grad():
        time.sleep(0.005)  # spinning threads of the one before go to sleep
        if question["warm"]:
            call()
        for _ in range(question["count"]):
            start_ns = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - start_ns) * 1e-6)
    return {"times": times}


if __name__ == "__main__":
    main()
