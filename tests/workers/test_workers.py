"""Outcomes of items that succeed, fail, hang and crash; start and end of worker processes."""

import gc
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from chemeleon2_jax.workers import Background, Outcome, WorkerError, WorkerPool
from chemeleon2_jax.workers import pool as pool_module
from chemeleon2_jax.workers import schedule as schedule_module

ROOT = Path(__file__).parents[2]


def misbehave(item):
    """Fail in the way that the item names."""
    match item:
        case "raise":
            raise ValueError("a message\nof two lines")
        case "exit":
            sys.exit(3)
        case "crash":
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "sleep":
            time.sleep(60)
        case "swallow":
            return swallow()
        case "stuck":
            sum(range(10**13))  # one call into C: no signal handler runs
        case "lambda":
            return lambda: None
    return item


def swallow():
    try:
        time.sleep(60)
    except Exception:
        return "the limit was caught"


def describe_process(_):
    names = ("OMP_NUM_THREADS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
    return {
        "pid": os.getpid(),
        "environment": [os.environ.get(name) for name in names],
        "modules": sorted({"jax", "numpy", "pymatgen"} & set(sys.modules)),
        "main": sys.modules["__main__"].__name__,
    }


def process_id(_):
    time.sleep(0.01)
    return os.getpid()


def nest(item):
    return WorkerPool(1).map(math.sqrt, [item])


class LoadedBy:
    """A function whose unpickling calls another function."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call

    def __call__(self, item):
        return item


class Unpicklable:
    def __reduce__(self):
        raise TypeError("stays here")


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2) as pool:
        yield pool


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_until_dead(pid, seconds=10.0):
    limit = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < limit:
        time.sleep(0.05)
    return not is_alive(pid)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_outcomes_are_in_order(pool, chunk_size):
    outcomes = pool.map(math.sqrt, [4.0, -1.0, *range(40)], chunk_size=chunk_size)
    assert outcomes[0] == Outcome(2.0)
    assert outcomes[1] == Outcome(None, "ValueError: math domain error")
    assert [outcome.value for outcome in outcomes[2:]] == [math.sqrt(i) for i in range(40)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_items(num_workers):
    assert WorkerPool(num_workers).map(math.sqrt, iter(())) == []


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_bad_items_fail_alone(pool, chunk_size, monkeypatch):
    monkeypatch.setattr(schedule_module, "GRACE_S", 0.3)
    items = [0, "raise", "crash", "sleep", 1, "stuck", "segfault", "exit", "lambda", 2, 3]
    done = []
    outcomes = pool.map(misbehave, items, timeout_s=0.3, chunk_size=chunk_size, on_done=done.append)
    assert sum(done) == len(items)
    found = dict(zip(items, outcomes, strict=True))
    assert [found[i] for i in range(4)] == [Outcome(i) for i in range(4)]
    assert found["raise"].error == "ValueError: a message of two lines"
    assert found["crash"].error == "worker died (exit status 3)"
    assert found["segfault"].error == "worker died (signal 11)"
    assert found["sleep"].error == found["stuck"].error == "timeout after 0.3 s"
    assert found["exit"].error == "SystemExit: 3"
    assert "cannot be pickled" in found["lambda"].error


def test_the_alarm_passes_broad_handlers_and_keeps_the_worker():
    with WorkerPool(1) as pool:
        first = pool.map(process_id, [0])[0].value
        assert pool.map(misbehave, ["swallow"], timeout_s=0.2)[0].error == "timeout after 0.2 s"
        assert pool.map(process_id, [0])[0].value == first


def test_waiting_in_the_queue_does_not_count():
    with WorkerPool(1) as pool:
        outcomes = pool.map(time.sleep, [0.15] * 6, timeout_s=0.5, chunk_size=6)
    assert all(outcome.error is None for outcome in outcomes)


def test_items_and_results_that_cannot_be_pickled(pool):
    outcomes = pool.map(misbehave, [Unpicklable(), 1], chunk_size=2)
    assert outcomes[0].error == "item cannot be pickled: TypeError: stays here"
    assert outcomes[1] == Outcome(1)


def test_workers_are_kept_and_replaced():
    with WorkerPool(2) as pool:
        assert pool.map(process_id, [0])[0].value != os.getpid()
        pids = {outcome.value for outcome in pool.map(process_id, range(50))}
        assert len(pids) == 2
        assert {outcome.value for outcome in pool.map(process_id, range(50))} == pids
        for pid in pids:  # as the system does when memory runs out
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        outcomes = pool.map(process_id, range(50))
        assert all(outcome.error is None for outcome in outcomes)
        assert not {outcome.value for outcome in outcomes} & pids
    assert all(wait_until_dead(outcome.value) for outcome in outcomes)


def test_no_more_workers_than_chunks():
    with WorkerPool(4) as pool:
        pool.map(math.sqrt, range(10), chunk_size=5)
        assert len(pool._workers) <= 2
        pool.map(math.sqrt, [1.0])
        assert len(pool._workers) <= 2


def test_default_number_of_workers(monkeypatch):
    for cpus, expected in ((3, 3), (64, 16)):
        monkeypatch.setattr(pool_module, "available_cpus", lambda cpus=cpus: cpus)
        assert WorkerPool().num_workers == expected
    assert WorkerPool(40).num_workers == 40


def test_a_closed_pool_starts_again(pool):
    pool.close()
    assert pool.map(math.sqrt, [4.0]) == [Outcome(2.0)]


def test_a_forgotten_pool_stops_its_workers():
    pool = WorkerPool(1)
    pid = pool.map(process_id, [0])[0].value
    del pool
    gc.collect()
    assert wait_until_dead(pid)


def test_workers_are_light_and_see_no_accelerator(pool, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    pool.close()
    found = pool.map(describe_process, [0])[0].value
    assert found["environment"] == ["1", "cpu", ""]
    assert not found["modules"]
    assert os.environ["JAX_PLATFORMS"] == "tpu"


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [(math.sqrt, -1.0, "ValueError: math domain error"), (os._exit, 7, "exit status 7")],
)
def test_workers_that_cannot_load_the_function(function, argument, message):
    with WorkerPool(2) as pool, pytest.raises(WorkerError, match=message):
        pool.map(LoadedBy(function, argument), range(10))


def test_a_worker_starts_no_workers(pool):
    assert pool.map(nest, [4.0])[0].error.startswith("WorkerError: a worker process cannot start")


def test_in_process_mode():
    pool, done = WorkerPool(0), []
    outcomes = pool.map(process_id, [1, 2], on_done=done.append)
    assert [outcome.value for outcome in outcomes] == [os.getpid()] * 2
    assert done == [1, 1]
    before = signal.getsignal(signal.SIGALRM)
    outcomes = pool.map(misbehave, ["sleep", "raise", 5], timeout_s=0.2)
    assert outcomes[0].error == "timeout after 0.2 s"
    assert outcomes[1].error.startswith("ValueError")
    assert outcomes[2] == Outcome(5)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("num_workers", [0, 1])
def test_from_another_thread(num_workers):
    found = []

    def work():
        with WorkerPool(num_workers) as pool:
            found.extend(pool.map(misbehave, [1, "raise"], timeout_s=5.0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == Outcome(1)
    assert found[1].error.startswith("ValueError")


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_workers is -1"):
        WorkerPool(-1)
    with pytest.raises(ValueError, match="chunk_size 0"):
        WorkerPool(0).map(math.sqrt, [1], chunk_size=0)
    with pytest.raises(ValueError, match="timeout_s 0"):
        WorkerPool(0).map(math.sqrt, [1], timeout_s=0)


def run_script(tmp_path, text):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_script_without_a_guard(tmp_path):
    """Functions of modules need none; for functions of the script the error names the guard."""
    text, errors = run_script(
        tmp_path,
        """
        import math
        from chemeleon2_jax.workers import WorkerPool
        def own(x):
            return x
        with WorkerPool(1) as pool:
            print(pool.map(math.sqrt, [4.0])[0].value)
            pool.map(own, [1])
        """,
    ).communicate(timeout=60)
    assert text.split() == ["2.0"]
    assert 'if __name__ == "__main__"' in errors


def test_script_with_functions_and_classes_of_its_own(tmp_path):
    text, errors = run_script(
        tmp_path,
        """
        from dataclasses import dataclass
        from chemeleon2_jax.workers import WorkerPool
        @dataclass
        class Point:
            x: int
        def move(point):
            return Point(point.x + 1)
        if __name__ == "__main__":
            with WorkerPool(1) as pool:
                print(pool.map(move, [Point(1)])[0].value == Point(2))
        """,
    ).communicate(timeout=60)
    assert text.split() == ["True"], errors


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_orphans(tmp_path, how):
    parent = run_script(
        tmp_path,
        """
        import os, signal, time
        from chemeleon2_jax.workers import WorkerPool
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        with WorkerPool(1) as pool:
            print(pool.map(os.getpgid, [0])[0].value, flush=True)
            pool.map(time.sleep, [60])
        """,
    )
    worker = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.send_signal(how)
    parent.communicate(timeout=20)
    assert wait_until_dead(worker)


# --- beside the main thread -----------------------------------------------------------------------


def test_background_runs_tasks_in_order():
    background, done = Background(), []
    futures = [background.submit(lambda i=i: done.append(i) or i) for i in range(5)]
    assert [future.result() for future in futures] == done == list(range(5))
    failing = background.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert background.submit(lambda: 7).result() == 7
    background.stop()
    assert background.join(10)


def test_cancelled_map_ends_and_the_next_one_works():
    with WorkerPool(1) as pool:
        background = Background()
        future = background.submit(lambda: pool.map(time.sleep, [0, 3600]))
        while not future.done():
            pool.cancel()
            background.join(0.05)
        with pytest.raises(WorkerError, match="cancelled"):
            future.result()
        background.stop()
        assert [outcome.value for outcome in pool.map(abs, [-1, 2])] == [1, 2]
