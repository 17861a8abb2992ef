"""Memory: it does not grow, it is given back, and it is known beforehand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from memory_of_calls import ESTIMATED, MEGABYTE, check_estimate, python

FULL = os.environ.get("SPARSE_MIXER_STRESS", "") == "full"
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")


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


_STEPS = """
from sparse_mixer import models, optimizers
encoder = sparse_mixer.SparseMixer(
    20_000, hidden_size=256, num_layers=10, moe_layers=(4,), attention_layers=(8, 9), num_experts=4,
    num_attention_heads=4, inner_dim=256, max_sequence_length=64, seed=0, num_threads=2,
)
ids = np.random.default_rng(0).integers(0, 20_000, (16, 64), np.int32)
inputs = dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=ids % 2)
labels, optimizer = np.arange(16) % 2, optimizers.AdamW(1e-3)
model = models.BertClassifier(encoder, 2, seed=0)
"""
_LOOPS = {
    "fit": """
data = {name: np.tile(array, (3, 1)) for name, array in inputs.items()}, np.tile(labels, 3)
model.fit(data, optimizer=optimizer, batch_size=16, progress=False)
""",
    "encoder": """
for step in range(3):
    outputs, vjp = encoder.vjp(inputs, training=True, seed=step)
    grads = vjp({"pooled_output": outputs["pooled_output"]})
    optimizer.apply_gradients(encoder, grads)
""",
    "model": """
for step in range(3):
    metrics, grads = model.loss_and_gradients((inputs, labels), seed=step)
    optimizer.apply_gradients(model, grads)
""",
}


def test_the_plain_loops_take_no_more_than_fit(report: Any) -> None:
    """New gradients in every step, all outputs, and nothing that is dropped by hand."""
    peaks = {}
    for loop, program in _LOOPS.items():
        (peaks[loop],) = python(f"{_STEPS}{program}print(memory('VmHWM'))")
    report(**{loop: f"{peak / MEGABYTE:.1f} MB" for loop, peak in peaks.items()})
    for loop in ("encoder", "model"):
        assert peaks[loop] <= 1.02 * peaks["fit"] + 3 * MEGABYTE


@pytest.mark.parametrize("first", ["grads", "encoder"])
@pytest.mark.parametrize("loop", ["fit", "encoder", "model"])
def test_memory_of_gradients_ends_with_their_encoder(loop: str, first: str) -> None:
    """Whatever is dropped first, and although nobody has called `release_scratch`."""
    held, after, gradients = python(f"""{_STEPS}
import gc
inputs, labels = {{name: array[:1] for name, array in inputs.items()}}, labels[:1]
size, grads = 4 * encoder.count_params(), None
{_LOOPS[loop].replace("batch_size=16", "batch_size=1")}
outputs = vjp = data = None
{"grads = None" if first == "grads" else "model = encoder = None"}
grads = model = encoder = optimizer = None
gc.collect(); trim()
held = memory("VmRSS")
sparse_mixer.release_scratch(); trim()
print(held, memory("VmRSS"), size)
""")
    assert held - after < 0.5 * gradients


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
    (done,) = python(
        f"""
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
""",
        MALLOC_ARENA_MAX="1",
    )  # memory that the C library set aside for other threads would do for a refused copy
    assert done == 1


@pytest.mark.skipif(not FULL, reason="some of them are in test_memory_estimate.py")
@pytest.mark.parametrize("case", ESTIMATED)
def test_estimate(case: str, report: Any) -> None:
    report(case=case, **check_estimate(case))
