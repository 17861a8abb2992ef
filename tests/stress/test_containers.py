"""Threads in surroundings that limit them: affinity, variables, systems that refuse to start any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parents[1])
_PRELUDE = f"""
import os, resource, sys, threading
sys.path[:0] = [{TESTS!r}]
import numpy as np
import sparse_mixer
from encoders import small_encoder, small_inputs
def ours():
    count = 0
    for task in os.listdir("/proc/self/task"):
        try:
            count += open(f"/proc/self/task/{{task}}/comm").read().startswith("sparse_mixer")
        except OSError:
            pass  # it has just ended
    return count
"""


def python(program: str, **environment: str) -> str:
    """What the program prints."""
    removed = {"OMP_NUM_THREADS", "SPARSE_MIXER_NUM_THREADS"}
    variables = {key: value for key, value in os.environ.items() if key not in removed} | environment
    command = [sys.executable, "-c", _PRELUDE + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")


@needs_affinity
def test_affinity_limits_the_default() -> None:
    some = min(os.sched_getaffinity(0))
    assert python(f"os.sched_setaffinity(0, [{some}]); print(sparse_mixer.get_num_threads())") == "1"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, "1"),
        ({"OMP_NUM_THREADS": "1,4"}, "1"),
        ({"OMP_NUM_THREADS": "1", "SPARSE_MIXER_NUM_THREADS": "3"}, "3"),
        ({"SPARSE_MIXER_NUM_THREADS": "5"}, "5"),
        ({"OMP_NUM_THREADS": "nonsense", "SPARSE_MIXER_NUM_THREADS": " 2 "}, "2"),
    ],
)
def test_precedence(variables: dict[str, str], expected: str) -> None:
    assert python("print(sparse_mixer.get_num_threads())", **variables) == expected
    assert python("sparse_mixer.set_num_threads(7); print(sparse_mixer.get_num_threads())", **variables) == "7"


@needs_proc
@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_threads_than_asked(threads: int) -> None:
    """However many callers there are, each of which works, too; none before the first call that needs them."""
    program = f"""
encoder = small_encoder(num_threads={threads}, hidden_size=64)
before = ours()
most = 0
def call():
    global most
    for n in range(10):
        encoder(small_inputs(8, n))
        most = max(most, ours())
callers = [threading.Thread(target=call) for _ in range(6)]
for caller in callers: caller.start()
for caller in callers: caller.join()
print(before, most)
"""
    assert python(program) == f"0 {threads - 1}"


@needs_proc
def test_pools_that_nobody_uses_end() -> None:
    program = """
import time
encoder = small_encoder(hidden_size=64)
for threads in range(1, 17):
    encoder.num_threads = threads
    encoder(small_inputs(8))
time.sleep(0.5)
print(ours())
"""
    # That of the last call, and the one before for callers that take turns.
    assert python(program) == str(15 + 14)


def test_the_default_is_known_at_once() -> None:
    """A small call must not spend its time on reading what the control group allows."""
    program = """
import time
sparse_mixer.get_num_threads()
start = time.perf_counter()
for _ in range(1000): sparse_mixer.get_num_threads()
print((time.perf_counter() - start) / 1000 < 10e-6)
"""
    assert python(program) == "True"


@needs_proc
@pytest.mark.parametrize(
    "limit",
    [
        # As a user who may have no further thread; root is never refused.
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); os.getuid() or os.setuid(54321)",
        # Without address space for more than a few stacks of threads.
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20),) * 2)",
    ],
    ids=["no thread", "few threads"],
)
def test_threads_that_the_system_refuses(limit: str) -> None:
    program = f"""
from sparse_mixer import optimizers
expected = small_encoder(num_threads=1)(small_inputs(8))["sequence_output"].tobytes()
encoder = small_encoder(num_threads=64)
{limit}
assert encoder(small_inputs(8))["sequence_output"].tobytes() == expected
outputs, vjp = encoder.vjp(small_inputs(8), seed=0)
optimizers.SGD(1e-3).apply_gradients(encoder, vjp({{"pooled_output": outputs["pooled_output"]}}))
print(ours() < 64)
"""
    assert python(program) == "True"
