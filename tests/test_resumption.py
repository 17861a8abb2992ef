"""Runs that are stopped, killed or interrupted resume with the same bits; states of other runs are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder
from sparse_mixer import models, optimizers, training
from sparse_mixer.training import callbacks
from training_cases import SaveAfter, StopAfter, assert_same_weights, digest, labelled, make_run


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "dtype"), [("adamw", "float32"), ("adafactor", "float32"), ("lamb", "bfloat16")])
def test_stopped_runs_resume_with_the_same_bits(rule: str, dtype: str, tmp_path: Path) -> None:
    whole = make_run(rule, tmp_path / "whole", dtype=dtype)
    whole.run()
    steps = whole.step
    for stop in np.random.default_rng(0).choice(np.arange(1, steps), 5, replace=False):
        first = make_run(rule, tmp_path / str(stop), StopAfter(int(stop)), dtype)
        first.run()
        first.save(tmp_path / "stopped.npz")
        second = make_run(rule, tmp_path / str(stop), dtype=dtype)
        second.restore(tmp_path / "stopped.npz")
        assert second.step == stop
        history = second.run()
        assert history == whole.history
        assert_same_weights(second.model, whole.model)
        for name, moment in whole.optimizer.get_state()[1].items():
            np.testing.assert_array_equal(second.optimizer.get_state()[1][name], moment)


@pytest.mark.slow
def test_twenty_random_stops_resume_in_a_new_process(tmp_path: Path) -> None:
    stops = np.random.default_rng(1).choice(np.arange(1, 32), 20, replace=False)
    whole = make_run("adamw", tmp_path / "whole", SaveAfter(stops, tmp_path), epochs=8)
    whole.run()
    assert whole.step == 32
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import training_cases as t
for path in sorted(Path(sys.argv[1]).glob("stop-*.npz")):
    run = t.make_run("adamw", Path(sys.argv[1], path.stem), epochs=8)
    run.restore(path)
    run.run()
    print(t.digest(run))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], timeout=200, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [digest(whole)] * 20


@pytest.mark.slow
def test_a_killed_process_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """The same in new processes, killed without warning; the state is saved after every update."""
    program = f"""
import os, sys, signal
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import training_cases as t
class Kill(t.callbacks.Callback):
    def on_step_end(self, trainer, logs):
        if trainer.step == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
run = t.make_run("adamw", Path(sys.argv[1]), Kill())
run._save_every = 1
if Path(sys.argv[1], "state.npz").exists(): run.restore(Path(sys.argv[1], "state.npz"))
run.run()
"""
    whole = make_run("adamw", tmp_path / "whole")
    whole.run()
    for stop in (3, 7, -1):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(stop)], timeout=120, check=False)
        assert done.returncode == (0 if stop < 0 else -signal.SIGKILL)
    resumed = make_run("adamw", tmp_path)
    resumed.restore(tmp_path / "state.npz")
    assert resumed.history == whole.history
    assert_same_weights(resumed.model, whole.model)


def test_ctrl_c_leaves_a_state_to_resume_from(tmp_path: Path) -> None:
    whole = make_run("adamw", tmp_path / "whole")
    whole.run()

    class Interrupt(callbacks.Callback):
        def on_step_end(self, trainer: Any, logs: Any) -> None:
            if trainer.step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    run = make_run("adamw", tmp_path, Interrupt())
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.step == 5
    resumed = make_run("adamw", tmp_path)
    resumed.restore(tmp_path / "state.npz")
    assert_same_weights(resumed.model, run.model)
    assert resumed.run() == whole.history
    assert run.run() == whole.history, "the interrupted run itself goes on, too"
    assert_same_weights(run.model, whole.model)


def test_ctrl_c_during_an_update_waits_for_it() -> None:
    """A signal that comes while weights are changed is raised when counters agree with them again."""
    model = models.BertClassifier(small_encoder(), 2, seed=0)
    optimizer = optimizers.AdamW()
    apply = optimizer.apply_gradients

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return apply(*arguments, **keywords)

    optimizer.apply_gradients = interrupted  # type: ignore[method-assign]
    trainer = training.Trainer(model, labelled(), optimizer=optimizer, batch_size=8, seed=0)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert (trainer.step, trainer.batch, len(trainer.history.steps)) == (1, 1, 1)


def test_states_of_other_runs_are_refused(tmp_path: Path) -> None:
    run = make_run("adamw", tmp_path, StopAfter(2))
    run.run()
    path = tmp_path / "state.npz"
    run.save(path)
    other = training.Trainer(
        models.BertClassifier(small_encoder(), 2, seed=0), labelled(), optimizer=optimizers.AdamW(), seed=0
    )
    with pytest.raises(ValueError, match="saved for another model"):
        other.restore(path)
    whole = path.read_bytes()
    for damaged in (whole[:1000], b"", b"PK" + whole[2:5000], bytes(len(whole))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged, or not a training state"):
            run.restore(path)
    with pytest.raises(FileNotFoundError):
        run.restore(tmp_path / "missing.npz")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
def test_saving_copies_neither_weights_nor_moments(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import numpy as np
from encoders import small_encoder, small_inputs
from sparse_mixer import models, optimizers, training
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))
encoder = small_encoder(vocab_size=20_000, hidden_size=256, embedding_width=256, num_threads=1)
run = training.Trainer(
    models.BertClassifier(encoder, 2, seed=0), (small_inputs(4), np.arange(4) % 2), optimizer=optimizers.AdamW(1e-3),
    batch_size=4, seed=0,
)
run.run()
run.save(sys.argv[1])
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
run.save(sys.argv[1])
print(before, memory("VmHWM"), 12 * encoder.count_params())
"""
    path = tmp_path / "state.npz"
    done = subprocess.run(
        [sys.executable, "-c", program, path], timeout=200, check=True, capture_output=True, text=True
    )
    before, peak, state = map(int, done.stdout.split())
    assert path.stat().st_size > state > 60e6
    assert peak - before < 4e6
