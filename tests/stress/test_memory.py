"""Memory: it does not grow, it is given back, and it is known beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MEGABYTE = 1 << 20
TESTS = str(Path(__file__).parents[1])
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")

_PRELUDE = f"""
import ctypes, sys
sys.path[:0] = [{TESTS!r}]
import numpy as np
import sparse_mixer
from encoders import small_encoder, small_inputs
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))
def trim():
    ctypes.CDLL(None).malloc_trim(0)
"""


def python(program: str, **environment: str) -> list[float]:
    """The numbers that the program prints."""
    command = [sys.executable, "-c", _PRELUDE + program]
    variables = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_no_growth(scaled: Any, report: Any) -> None:
    calls = scaled(600, 10_000)
    level, after, peak = python(f"""
encoder = small_encoder(num_threads=2, hidden_size=64, inner_dim=256)
rng = np.random.default_rng(0)
batches = {{batch: small_inputs(batch) for batch in range(1, 65)}}
for batch in batches: encoder(batches[batch])
for _ in range(50): encoder(batches[int(rng.integers(1, 65))])
level, most = memory("VmRSS"), 0
for number in range({calls}):
    inputs = batches[int(rng.integers(1, 65))]
    if number % 10 == 0:
        outputs, vjp = encoder.vjp(inputs)
        vjp({{"pooled_output": outputs["pooled_output"]}})
    else:
        encoder(inputs, training=number % 7 == 0)
    if number == {calls} // 20: level = memory("VmRSS")  # the tapes' memory belongs to the warm-up
    most = max(most, memory("VmRSS")) if number > {calls} // 20 else 0
print(level, memory("VmRSS"), most)
""")
    report(calls=calls, growth=f"{(after - level) / MEGABYTE:.1f} MB", highest=f"{(peak - level) / MEGABYTE:.1f} MB")
    assert peak - level <= 16 * MEGABYTE


def test_the_plain_loop_takes_no_more_than_one_that_drops_its_records() -> None:
    """A record is released when it has been used: weights are not copied, and no two records are alive."""
    plain, dropping, unused, weights = python("""
from sparse_mixer import optimizers
encoder = small_encoder(vocab_size=100_000, hidden_size=128, inner_dim=1024, num_layers=6, num_threads=1)
inputs, optimizer = small_inputs(256), optimizers.SGD(1e-3)
def peak(work):
    grads = vjp = None
    for step in range(4):
        if step == 2:
            with open("/proc/self/clear_refs", "w") as clear: clear.write("5")
        grads = None
        outputs, vjp = encoder.vjp(inputs, seed=step)
        vjp, grads = work(vjp, {"pooled_output": outputs["pooled_output"]})
        optimizer.apply_gradients(encoder, grads)
    return memory("VmHWM")
def drop(vjp, d_outputs):
    grads = vjp(d_outputs)
    del vjp
    return None, grads
def keep_unused(vjp, d_outputs):
    return encoder.vjp(inputs, seed=9)[1], vjp(d_outputs)
dropping = peak(drop)
plain = peak(lambda vjp, d_outputs: (vjp, vjp(d_outputs)))
print(plain, dropping, peak(keep_unused), encoder.weight_bytes)
""")
    assert plain - dropping < 0.1 * weights
    assert unused - dropping > 0.9 * weights, "the weights of a record that is in use are copied"


def test_encoders_and_files_come_and_go(scaled: Any, tmp_path: Path) -> None:
    level, after = python(f"""
path = {str(tmp_path / "weights.safetensors")!r}
small_encoder(hidden_size=64).save(path)
def once():
    encoder = sparse_mixer.SparseMixer.load(path)
    encoder(small_inputs(4))
for _ in range(20): once()
level = memory("VmRSS")
for _ in range({scaled(100, 1000)}): once()
print(level, memory("VmRSS"))
""")
    assert after - level <= 8 * MEGABYTE


def test_scratch_is_given_back() -> None:
    before, during, after = python("""
encoder = small_encoder(num_threads=2, hidden_size=256, inner_dim=64)
inputs = small_inputs(4096)
encoder(small_inputs(4))
before = memory("VmRSS")
encoder(inputs, outputs=("pooled_output",))
during = memory("VmRSS")
sparse_mixer.release_scratch()
trim()
print(before, during, memory("VmRSS"))
""")
    assert during - before > 64 * MEGABYTE
    assert after - before < 8 * MEGABYTE


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("room", [1, 20, 200, 500])
def test_refused_memory_is_an_exception(room: int, threads: int) -> None:
    """At the inputs' copies, at scratch or at outputs; and what fits is computed afterwards as before."""
    (done,) = python(f"""
import resource
encoder = small_encoder(num_threads={threads}, hidden_size=256, inner_dim=64)
few, many = small_inputs(2), small_inputs(20_000)
expected = encoder(few)["sequence_output"].tobytes()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + ({room} << 20), limits[1]))
try:
    encoder(many)
except MemoryError:
    assert encoder(few)["sequence_output"].tobytes() == expected
    print(1)
""")
    assert done == 1


@pytest.mark.parametrize("rule", ["AdamW", "LAMB", "SGD", "Adafactor"])
@pytest.mark.parametrize("step", [1, 2])
def test_an_update_that_is_refused_memory_changes_nothing(rule: str, step: int) -> None:
    """Neither weights nor moments nor the number of steps; with memory the update is that of an undisturbed run."""
    (done,) = python(f"""
import resource
from sparse_mixer import optimizers
from sparse_mixer.gradients import Gradients
def optimizer():
    return optimizers.SGD(0.1, momentum=0.9) if {rule!r} == "SGD" else getattr(optimizers, {rule!r})(0.1)
def trained(steps):
    encoder, rule = small_encoder(vocab_size=200_000, hidden_size=64, embedding_width=64, num_threads=2), optimizer()
    for _ in range(steps): rule.apply_gradients(encoder, ones(encoder))
    return encoder, rule
def ones(encoder):
    gradients = Gradients(encoder)
    for variable in encoder.weights: gradients.set(variable.key, np.ones(variable.shape, np.float32))
    return gradients
expected, _ = trained({step})
encoder, rule = trained({step - 1})
before = encoder.get_weights()
grads = ones(encoder)
# A snapshot in use: the update must copy the weights.
_, vjp = encoder.vjp(small_inputs(1))
trim()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), limits[1]))
for _ in range(2):
    try:
        rule.apply_gradients(encoder, grads)
    except MemoryError:
        pass
    else:
        raise AssertionError("there was memory")
resource.setrlimit(resource.RLIMIT_AS, limits)
assert rule.iterations == {step - 1}
assert all(map(np.array_equal, encoder.get_weights(), before))
rule.apply_gradients(encoder, grads)
assert rule.iterations == {step}
assert all(map(np.array_equal, encoder.get_weights(), expected.get_weights()))
print(1)
""")
    assert done == 1


LARGE = "vocab_size=20_000, hidden_size=256, inner_dim=1024, max_sequence_length=128"
CASES = {
    "linear": ("num_layers=3, moe_layers=(), attention_layers=()", 64, ""),
    "spectral": ("num_layers=3, moe_layers=(), attention_layers=(), mixing_mechanism='hartley', use_fft=True", 64, ""),
    "matrices": ("num_layers=2, moe_layers=(), attention_layers=(), mixing_mechanism='fourier'", 64, ""),
    "attention": ("num_layers=3, moe_layers=(), attention_layers=(0, 1, 2), num_attention_heads=4", 64, ""),
    "experts": ("num_layers=3, moe_layers=(1,), attention_layers=(2,), num_experts=8", 64, ""),
    "more capacity": (
        "num_layers=2, moe_layers=(0, 1), attention_layers=(), num_experts=8, eval_capacity_factor=2",
        64,
        "",
    ),
    "less capacity": (
        "num_layers=2, moe_layers=(0, 1), attention_layers=(), num_experts=8, eval_capacity_factor=0.5",
        64,
        "",
    ),
    "pre-norm": ("num_layers=3, moe_layers=(1,), attention_layers=(2,), norm_first=True", 64, ""),
    "bfloat16": ("num_layers=3, moe_layers=(1,), attention_layers=(2,), dtype='bfloat16'", 128, ""),
    "int8": ("num_layers=3, moe_layers=(1,), attention_layers=(2,), dtype='int8'", 128, ""),
    "float16": ("num_layers=3, moe_layers=(1,), attention_layers=(2,), dtype='float16'", 96, ""),
    "narrow embeddings": ("num_layers=2, embedding_width=64, moe_layers=(0,), attention_layers=()", 64, ""),
    "one output": ("num_layers=6, moe_layers=(1,), attention_layers=(2,)", 64, "('pooled_output',)"),
    "two outputs": ("num_layers=6, moe_layers=(1,), attention_layers=(2,)", 64, "('sequence_output', 'pooled_output')"),
    "one example": ("num_layers=6, moe_layers=(1,), attention_layers=(2,)", 1, ""),
    "toeplitz": ("num_layers=3, moe_layers=(), attention_layers=(), mixing_mechanism='toeplitz'", 64, ""),
    "circulant": ("num_layers=3, moe_layers=(), attention_layers=(), mixing_mechanism='circulant'", 64, ""),
    "convolutions": (
        "num_layers=3, moe_layers=(), attention_layers=(), mixing_mechanism='circulant', use_fft=True",
        64,
        "",
    ),
    "paper": ("num_layers=3, moe_layers=(1,), attention_layers=(2,), num_experts=8, semantics='paper'", 64, ""),
    "tokens choose": (
        # Weights that send tokens to all experts: the estimate is for experts that are full.
        "num_layers=3, moe_layers=(1,), attention_layers=(2,), num_experts=8, router='tokens_choose', "
        "initializer=sparse_mixer.initializers.RandomNormal(stddev=1.0)",
        64,
        "",
    ),
    "output range": ("num_layers=3, moe_layers=(1,), attention_layers=(2,), output_range=1", 64, ""),
    "custom activation": ("num_layers=2, moe_layers=(), attention_layers=(), inner_activation=np.tanh", 32, ""),
}


# Batches and threads for which a few kinds of encoders are measured, too.
SIZES = [(1, 1), (1, 8), (16, 8), (256, 1), (256, 8)]
SIZED = ["linear", "toeplitz", "experts", "paper"]


def estimate_and_peak(arguments: str, batch: int, outputs: str, threads: int, calls: int) -> list[float]:
    keyword = f", outputs={outputs}" if outputs else ""
    program = f"""
warm = small_encoder(num_threads={threads})
warm(small_inputs(64))
sparse_mixer.release_scratch()
trim()
before = memory("VmRSS")
encoder = sparse_mixer.SparseMixer({LARGE}, {arguments}, seed=0, num_threads={threads})
ids = np.random.default_rng(0).integers(0, 20_000, ({batch}, 128), np.int32)
ones = np.ones_like(ids)
inputs = dict(input_word_ids=ids, input_mask=ones, input_type_ids=ones)
sparse_mixer.release_scratch()
trim()
open("/proc/self/clear_refs", "w").write("5")
for _ in range({calls}):
    outputs = None
    outputs = encoder(inputs{keyword})
print(encoder.memory_estimate({batch}{keyword}), memory("VmHWM") - before)
"""
    # The C library keeps up to some 11 MB of what threads had given back, which is none of the call's.
    return python(program, MALLOC_ARENA_MAX="1")


@pytest.mark.parametrize(
    ("case", "batch", "threads"),
    [*((case, CASES[case][1], 2) for case in CASES), *((case, *size) for case in SIZED for size in SIZES)],
)
def test_estimate(case: str, batch: int, threads: int, report: Any) -> None:
    """Never below what a call takes, and at most 10 % above, weights included."""
    arguments, _, outputs = CASES[case]
    measured = 0.0
    for calls in (1, 2, 4, 16):
        estimate, once = estimate_and_peak(arguments, batch, outputs, threads, calls)
        assert once <= estimate
        measured = max(measured, once)
        # Not every thread gets something to do in every call, and each has its own scratch: the peak is the highest.
        if estimate <= 1.1 * measured:
            break
    figures = {"estimate": f"{estimate / MEGABYTE:.1f} MB", "measured": f"{measured / MEGABYTE:.1f} MB"}
    report(case=case, batch=batch, threads=threads, **figures)
    assert estimate <= 1.1 * measured
