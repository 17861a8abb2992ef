"""Memory that calls take, measured in processes of their own, beside what `memory_estimate` says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MEGABYTE = 1 << 20
TESTS = str(Path(__file__).parent)

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

MIXED = "num_layers=3, moe_layers=(1,), attention_layers=(2,), num_experts=8"
DENSE = "num_layers=3, moe_layers=(), attention_layers=()"
POOLED = "('pooled_output',)"
# Arguments, batch, threads, outputs.
ODD = {
    "wide experts, custom": (f"{MIXED}, inner_dim=16, expert_inner_dim=2048, inner_activation=np.tanh", 32, 2, ""),
    "wide experts, custom, 8 threads": (
        f"{MIXED}, inner_dim=16, expert_inner_dim=2048, inner_activation=np.tanh",
        64,
        8,
        "",
    ),
    "narrow experts, custom": (f"{MIXED}, expert_inner_dim=32, inner_activation=np.tanh", 32, 1, ""),
    "wide experts": (f"{MIXED}, inner_dim=64, expert_inner_dim=4096", 64, 8, POOLED),
    "softmax": (f"{DENSE}, inner_activation='softmax'", 8, 1, ""),
    "softmax, 8 threads": (f"{DENSE}, inner_dim=4096, inner_activation='softmax'", 8, 8, ""),
    "softmax, wide experts": (
        f"{MIXED}, inner_dim=64, expert_inner_dim=4096, inner_activation='softmax'",
        16,
        8,
        "",
    ),
    "log softmax, bfloat16": (f"{DENSE}, inner_activation='log_softmax', dtype='bfloat16'", 64, 2, ""),
    "custom, pre-norm": (f"{MIXED}, norm_first=True, inner_activation=np.tanh", 32, 2, ""),
    "custom, pooled": (f"{MIXED}, inner_activation=np.tanh", 64, 8, POOLED),
    "custom, int8": (f"{MIXED}, dtype='int8', inner_activation=np.tanh", 32, 8, ""),
    "custom, last mixture": (
        "num_layers=2, moe_layers=(1,), attention_layers=(), expert_inner_dim=512, inner_activation=np.tanh",
        64,
        1,
        "('sequence_output',)",
    ),
    "two choices": (f"{MIXED}, router='tokens_choose', num_selected_experts=2", 64, 8, ""),
    "two choices, custom": (
        f"{MIXED}, router='tokens_choose', num_selected_experts=2, eval_capacity_factor=2, "
        "expert_inner_dim=256, inner_activation=np.tanh",
        64,
        2,
        "",
    ),
    "tokens choose, paper": (f"{MIXED}, router='tokens_choose', semantics='paper'", 96, 1, ""),
    "Fourier, fast": (f"{DENSE}, mixing_mechanism='fourier', use_fft=True, norm_first=True", 64, 8, ""),
    "Fourier, matrices, bfloat16": (f"{DENSE}, mixing_mechanism='fourier', dtype='bfloat16'", 64, 8, ""),
    "Hartley, matrices, one example": (f"{DENSE}, mixing_mechanism='hartley'", 1, 8, ""),
    "Toeplitz, fast, int8": (f"{MIXED}, mixing_mechanism='toeplitz', use_fft=True, dtype='int8'", 64, 2, ""),
    "Toeplitz, float16": (f"{MIXED}, mixing_mechanism='toeplitz', dtype='float16'", 64, 8, ""),
    "circulant, bfloat16, pooled": (f"{DENSE}, mixing_mechanism='circulant', dtype='bfloat16'", 96, 2, POOLED),
    "routing": (f"{MIXED}, examples_per_group=4", 64, 2, "('routing', 'pooled_output')"),
    "outputs of blocks": (f"{MIXED}, norm_first=True", 48, 8, "('encoder_outputs',)"),
    "part of the sequence": (f"{MIXED}, semantics='paper', output_range=32", 64, 8, "('sequence_output',)"),
    "odd sizes": (
        "num_layers=4, hidden_size=198, inner_dim=777, embedding_width=77, max_sequence_length=61, "
        "moe_layers=(1,), attention_layers=(2,), num_experts=7, num_attention_heads=3, eval_capacity_factor=0.7",
        101,
        3,
        "",
    ),
    "half an example per group": (f"{MIXED}, examples_per_group=0.5, router_dtype='bfloat16'", 64, 1, ""),
    "many small experts": (
        "num_layers=4, moe_layers=(0, 1, 2), attention_layers=(), num_experts=64, expert_inner_dim=128",
        64,
        8,
        POOLED,
    ),
    "short sequences": (
        "num_layers=4, moe_layers=(1,), attention_layers=(2, 3), max_sequence_length=8",
        1024,
        8,
        "",
    ),
    "few rows": (f"{MIXED}, max_sequence_length=16", 4, 2, ""),
    "few rows, int8": (f"{DENSE}, max_sequence_length=16, dtype='int8'", 2, 8, ""),
    "long sequences": (
        "num_layers=3, moe_layers=(1,), attention_layers=(0, 2), max_sequence_length=2048, dtype='bfloat16'",
        4,
        8,
        "",
    ),
    "mixing long sequences": (f"{DENSE}, max_sequence_length=1024", 3, 8, POOLED),
}


def estimate_and_peak(arguments: str, batch: int, outputs: str, threads: int, calls: int) -> list[float]:
    keyword = f", outputs={outputs}" if outputs else ""
    program = f"""
warm = small_encoder(num_threads={threads})
warm(small_inputs(64))
sparse_mixer.release_scratch()
trim()
before = memory("VmRSS")
encoder = sparse_mixer.SparseMixer(**(dict({LARGE}) | dict({arguments})), seed=0, num_threads={threads})
length = encoder.get_config()["max_sequence_length"]
ids = np.random.default_rng(0).integers(0, 20_000, ({batch}, length), np.int32)
inputs = dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=ids % 2)
sparse_mixer.release_scratch()
trim()
open("/proc/self/clear_refs", "w").write("5")
for _ in range({calls}):
    outputs = None
    outputs = encoder(inputs{keyword})
print(encoder.memory_estimate({batch}{keyword}), memory("VmHWM") - before)
"""
    # The C library keeps some of what had been given back, which is none of the call's: up to some 11 MB of threads,
    # and, unless told from which size on it shall not, twice the largest array so far.
    return python(program, MALLOC_ARENA_MAX="1", MALLOC_MMAP_THRESHOLD_=str(128 << 10))


ESTIMATED = {
    **{case: (arguments, batch, 2, outputs) for case, (arguments, batch, outputs) in CASES.items()},
    **{f"{case}, batch {b}, {t} threads": (CASES[case][0], b, t, CASES[case][2]) for case in SIZED for b, t in SIZES},
    **ODD,
}
# Of every kind of layer one.
USUAL = ["experts", "wide experts, custom", "softmax, 8 threads", "outputs of blocks", "Toeplitz, fast, int8"]


def check_estimate(case: str) -> dict[str, str]:
    """Never below what a call takes, and at most 10 % above, weights included."""
    arguments, batch, threads, outputs = ESTIMATED[case]
    measured = 0.0
    for calls in (1, 2, 4, 16):
        estimate, once = estimate_and_peak(arguments, batch, outputs, threads, calls)
        assert once <= estimate
        measured = max(measured, once)
        # Not every thread gets something to do in every call, and each has its own scratch: the peak is the highest.
        if estimate <= 1.1 * measured:
            break
    assert estimate <= 1.1 * measured
    return {
        "estimate": f"{estimate / MEGABYTE:.1f} MB",
        "measured": f"{measured / MEGABYTE:.1f} MB",
        "ratio": f"{estimate / measured:.3f}",
    }
