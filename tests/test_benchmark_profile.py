"""`python -m benchmarks profile`: where the time of a call goes, in builds that measure it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sparse_mixer import SparseMixer, _native

from benchmarks.profile import ALONE, Profile, Section, lines, table

HAS_TIMERS = _native.take_section_times() is not None
ROOT = Path(__file__).parents[1]


def sections_of_two_threads() -> list[Section]:
    """What a call of 0.5 s on two threads might take."""
    return [
        Section("feed-forward, W1", "products", 0.4, 20, 40_000_000_000),
        Section("backward, dW", "products", 0.1, 5, 10_000_000_000),
        Section("router", "products", 0.01, 2, 1_000_000_000),
        Section("router", "softmax, mask", 0.02, 2, 0),
        Section("attention, rows", "softmax, mask", 0.05, 4, 0),
        Section("feed-forward, W1", "softmax, mask", 0.05, 4, 0),
        Section("mixing, rows", "everything else", 0.1, 1, 0),
        Section("pooler", "everything else", 0.001, 1, 0),
        Section("mixing, rows", "waiting", 0.03, 7, 0),
    ]


def test_lines_are_items_of_the_table_and_add_up_to_the_time_of_all_threads() -> None:
    found = {line.item: line for line in lines(sections_of_two_threads(), 0.5, 2)}
    assert {item: round(line.seconds, 6) for item, line in found.items()} == {
        "products: feed-forward, W1": 0.4,
        "products: backward, dW": 0.1,
        "all products": 0.5,
        "softmax, mask": 0.1,
        "router": 0.03,
        "everything else: mixing, rows": 0.1,
        "everything else: the rest": 0.001,
        "waiting": 0.03,
        ALONE: 0.239,
    }
    assert sum(line.seconds for item, line in found.items() if item != "all products") == pytest.approx(1.0)
    assert (found["softmax, mask"].calls, found["router"].operations) == (8, 1_000_000_000)


def test_rates_are_those_of_all_threads_beside_the_peak() -> None:
    text = table(Profile(sections_of_two_threads(), 0.5, [0.5, 0.6]), 2, 400e9)
    cells = {row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]] for row in text.splitlines()}
    assert cells["item"] == ["calls", "thread-ms", "% of total", "GFLOP/s", "% of peak"]
    assert cells["products: feed-forward, W1"] == ["20", "400.0", "40.0", "200", "50"]
    assert cells["softmax, mask"] == ["8", "100.0", "10.0", "", ""]
    # 51 GFLOP in half a second.
    assert cells["total"] == ["46", "1000.0", "100.0", "102", "26"]


@pytest.mark.skipif(HAS_TIMERS, reason="a build with section timers")
def test_builds_without_timers_say_how_to_make_one() -> None:
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "benchmarks", "profile"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode != 0
    assert "make profile" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not HAS_TIMERS, reason="a build without section timers")
@pytest.mark.parametrize("threads", [1, 2])
def test_sections_of_a_call_add_up_to_its_time(threads: int) -> None:
    sizes = {"hidden_size": 128, "num_layers": 4, "inner_dim": 512, "max_sequence_length": 128}
    layers = {"moe_layers": (1,), "attention_layers": (2,), "num_experts": 4, "num_attention_heads": 2}
    encoder = SparseMixer(vocab_size=100, **sizes, **layers, num_threads=threads, seed=0)
    ids = np.ones((8, 128), np.int32)
    inputs = {"input_word_ids": ids, "input_mask": ids, "input_type_ids": 0 * ids}
    encoder(inputs)
    _native.take_section_times()
    start = time.perf_counter()
    encoder(inputs)
    seconds = time.perf_counter() - start
    sections = [Section(*each) for each in _native.take_section_times() or []]
    places = {section.place for section in sections if section.work == "products"}
    assert places == {
        *("mixing, prepare", "mixing, rows", "attention, prepare", "attention, rows"),
        *("feed-forward, W1", "feed-forward, W2", "mixture, W1", "mixture, W2", "router", "pooler"),
    }
    # Rows times both kernels of a feed-forward layer, three dense and one of experts that take each token once.
    operations = sum(s.operations for s in sections if s.place.startswith(("feed-forward", "mixture")))
    assert operations == 4 * 2 * 2 * 8 * 128 * 128 * 512
    assert {"activation", "softmax, mask", "layer norms", "residual, gather", "packing"} <= {s.work for s in sections}
    measured = sum(section.seconds for section in sections)
    assert 0.5 * seconds * threads < measured <= 1.001 * seconds * threads
    assert _native.take_section_times() == []
