"""Measures for ``benchmarks/training.py``: one process per number of threads, asked in turns."""

import time

from workers import serve

_engines = {}


def answer(question):
    """Prepare a task, or time some steps of one of its engines."""
    if "task" in question:
        from training_engines import prepared

        _engines.clear()
        made, differs = prepared(question["task"], question["engines"])
        _engines.update(made)
        return {name: {"differs": differs.get(name)} for name in made}
    engine, count = _engines[question["engine"]], question["count"]
    time.sleep(0.005)  # spinning threads of the one before go to sleep
    engine.time(1)
    wall_s, cpu_s = engine.time(count)
    return {"wall_s": wall_s / count, "cpu_s": cpu_s / count}


if __name__ == "__main__":
    serve(answer)
