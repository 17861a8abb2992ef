"""Training on several ranks, which are threads here: the same bits for any number of them, and errors on all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import small_encoder
from ranks import Threads, cut_data, fit, on_ranks, pretrainer, texts
from sparse_mixer import distributed, models, optimizers, training
from sparse_mixer.distributed.communicator import pieces
from training_cases import digest, labelled


def digests(size: int, work: Any = fit, **options: Any) -> list[str]:
    runs = on_ranks(size, lambda communicator: digest(work(communicator)), **options)
    failed = [run for run in runs if isinstance(run, BaseException)]
    assert not failed, failed
    assert len(set(runs)) == 1, "the ranks differ"
    return runs[:1]


def test_any_number_of_ranks_gives_the_same_bits() -> None:
    one = digests(1)
    assert [digests(size) for size in (2, 4, 8)] == [one] * 3


def test_what_is_exchanged_at_once_and_when_does_not_matter() -> None:
    assert digests(2, bucket_bytes=10**9, overlap=False) == digests(4, bucket_bytes=640)


def test_weights_in_half_of_their_bits() -> None:
    def work(communicator: Any) -> training.Trainer:
        return fit(communicator, dtype="bfloat16", epochs=4)

    assert digests(1, work) == digests(4, work)


def test_data_of_each_rank_and_a_rank_without_batches() -> None:
    def work(communicator: Any) -> training.Trainer:
        return fit(communicator, data=cut_data, batch_size=None, epochs=3)

    one = digests(1, work)
    # Of the second update of an epoch, which has 3 batches, ranks 3 to 7 have none.
    assert digests(8, work) == digests(2, work) == one


def test_other_models_and_rules() -> None:
    def classifier(communicator: Any) -> training.Trainer:
        model = models.BertClassifier(small_encoder(num_threads=1), 2, use_encoder_pooler=False, seed=0)
        inputs, labels = labelled(37)
        weights = np.linspace(0.1, 2.0, 37, dtype=np.float32)
        optimizer = optimizers.LAMB(1e-2)
        return fit(
            communicator, model, (inputs, labels, weights), optimizer=optimizer, epochs=4, transform=None,
            validation_data=(inputs, labels),
        )  # fmt: skip

    assert digests(1, classifier) == digests(2, classifier) == digests(8, classifier)


def test_one_process_without_a_communicator_is_close() -> None:
    """It adds batches one after the other, so only rounding differs."""
    plain = fit(None, epochs=1)
    (several,) = {tuple(run.history.epochs[0].values()) for run in on_ranks(2, lambda c: fit(c, epochs=1))}
    np.testing.assert_allclose(several, list(plain.history.epochs[0].values()), rtol=1e-4)


def test_a_weight_that_nothing_reaches_stays() -> None:
    """The pooler's, under a loss of the first position; decay would change it."""

    def work(communicator: Any) -> bool:
        model = models.BertClassifier(small_encoder(num_threads=1), 2, use_encoder_pooler=False, seed=0)
        pooler = [variable for variable in model.weights if "pooler_transform" in variable.key]
        before = [variable.numpy() for variable in pooler]
        optimizer = optimizers.AdamW(0.1, weight_decay=0.5, exclude_from_weight_decay=())
        fit(communicator, model, labelled(20), optimizer=optimizer, epochs=2, transform=None)
        assert pooler
        return all(np.array_equal(a, variable.numpy()) for a, variable in zip(before, pooler, strict=True))

    assert on_ranks(4, work) == [True] * 4


def test_normalisers_are_those_of_all_batches() -> None:
    """Without dropout, the update of 8 uneven batches is that of one large batch."""

    def model() -> models.BertClassifier:
        encoder = small_encoder(num_threads=1, output_dropout=0.0, attention_dropout=0.0, moe_layers=())
        return models.BertClassifier(encoder, 2, dropout_rate=0.0, seed=0)

    inputs, labels = labelled(30)
    weights = np.linspace(0.0, 3.0, 30, dtype=np.float32)

    def work(communicator: Any, **changes: Any) -> list[Any]:
        arguments = {"optimizer": optimizers.SGD(1.0), "epochs": 1, "transform": None, "shuffle": False} | changes
        own = fit(communicator, model(), (inputs, labels, weights), **arguments)
        return list(own.model.get_weights())

    whole = work(None, batch_size=30, accumulation_steps=1)
    for several in on_ranks(4, work):
        for a, b in zip(whole, several, strict=True):
            np.testing.assert_allclose(a, b, atol=5e-6 * max(1.0, np.abs(a).max()))


def test_numbers_travel_in_half_of_their_bits() -> None:
    def work(communicator: Threads) -> tuple[str, int, float]:
        run = fit(communicator, epochs=2)
        return digest(run), communicator.exchanged, run.history.epochs[-1]["loss"]

    halves = on_ranks(2, work, wire_dtype="bfloat16")
    wholes = on_ranks(2, work)
    assert halves[0] == halves[1]
    assert wholes[0] == wholes[1]
    assert halves[0][1] * 2 == wholes[0][1]
    assert halves[0][0] != wholes[0][0]
    assert halves[0][2] == pytest.approx(wholes[0][2], rel=0.01)


@pytest.mark.parametrize("sizes", [(2, 4), (4, 1)])
def test_another_number_of_ranks_resumes(sizes: tuple[int, int], tmp_path: Path) -> None:
    class StopAfter(training.Callback):
        def on_step_end(self, trainer: Any, logs: Any) -> None:
            # One rank is enough.
            trainer.stop = trainer.step == 5 and trainer.rank == trainer.size - 1

    for data, size in ((None, 4), (cut_data, None)):
        folder = tmp_path / str(size)
        settings = {"data": data, "batch_size": size, "epochs": 4}
        whole = digests(1, lambda c, settings=settings: fit(c, **settings))

        def begin(communicator: Any, settings: Any = settings, folder: Any = folder) -> training.Trainer:
            return fit(communicator, folder=folder, callbacks=[StopAfter()], **settings)

        runs = on_ranks(sizes[0], begin)
        assert [run.step for run in runs] == [5] * sizes[0]

        def resume(communicator: Any, settings: Any = settings, folder: Any = folder) -> training.Trainer:
            return fit(communicator, folder=folder, **settings)

        assert digests(sizes[1], resume) == whole
    with pytest.raises(ValueError, match=r"saved by a run with sum of batches 'tree', this one has None"):
        fit(None, folder=tmp_path / "4", epochs=9)


def test_without_a_seed_that_of_rank_0_counts() -> None:
    runs = on_ranks(2, lambda c: digest(fit(c, seed=None, epochs=1)))
    assert runs[0] == runs[1]


def test_weights_are_those_of_rank_0() -> None:
    def work(communicator: Any) -> str:
        model = pretrainer()
        for variable in model.weights:
            variable.assign_add(np.float32(communicator.rank))
        return digest(fit(communicator, model, epochs=1))

    assert [*on_ranks(2, work)] == digests(1, lambda c: fit(c, epochs=1)) * 2


class Writes(training.Callback):
    """Says who calls it."""

    on_every_rank = False

    def __init__(self, ranks: list[int]) -> None:
        self.ranks = ranks

    def on_epoch_end(self, trainer: Any, logs: Any) -> None:
        self.ranks.append(trainer.rank)


def test_rank_0_alone_writes(tmp_path: Path) -> None:
    ranks: list[int] = []
    log = tmp_path / "log.jsonl"
    on_ranks(4, lambda c: fit(c, epochs=1, callbacks=[training.JSONLLogger(log), Writes(ranks)], folder=tmp_path))
    assert ranks == [0]
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, r"rank 2 has seed 6, not 5"),
        ({"batch_size": 5}, r"rank 2 has batch_size 5, not 4"),
        ({"optimizer": optimizers.SGD(0.1)}, r"rank 2 has optimizer 'sgd', not 'adamw'"),
        ({"model": "wider"}, r"rank 2 has encoder inner_dim 64, not 32"),
        ({"dtype": "bfloat16"}, r"rank 2 has encoder dtype 'bfloat16', not None"),
        ({"data": texts(42)}, r"rank 2 has examples 42, not 43"),
        ({"accumulation_steps": 16}, r"rank 2 has accumulation_steps 16, not 8"),
    ],
)
def test_ranks_that_differ_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    if change.get("model") == "wider":
        change = {"model": pretrainer(inner_dim=64)}

    def work(communicator: Any) -> None:
        fit(communicator, **(change if communicator.rank == 2 else {}))

    for error in on_ranks(4, work):
        assert isinstance(error, ValueError)
        assert message in str(error)


def test_instruction_sets_are_compared() -> None:
    """They may round differently, and then the weights of the ranks would come apart."""

    def work(communicator: Any) -> None:
        fit(communicator, pretrainer(isa="portable" if communicator.rank else None))

    for error in on_ranks(2, work):
        assert "rank 1 has instruction set 'portable', not '" in str(error)


def test_weights_that_come_apart_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_mixer.training import data_parallel

    monkeypatch.setattr(data_parallel, "CHECK_EVERY", 4)

    class Changes(training.Callback):
        def on_step_end(self, trainer: Any, logs: Any) -> None:
            if trainer.rank == 1 and trainer.step == 2:
                variable = trainer.model.weights[0]
                variable.assign(np.nextafter(variable.numpy(), np.float32(9)))

    for error in on_ranks(2, lambda c: fit(c, callbacks=[Changes()])):
        assert isinstance(error, RuntimeError)
        assert str(error) == "after 4 updates, weights of the ranks [1] are not those of rank 0"


def test_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_mixer.training import data_parallel

    versions = iter(["0.1.0", "0.2.0"])

    class Native:
        @property
        def __version__(self) -> str:
            return next(versions)

    monkeypatch.setattr(data_parallel, "_native", Native())
    for error in on_ranks(2, fit):
        assert "has version of sparse_mixer '0." in str(error)


def test_batches_that_do_not_fit_the_ranks_are_refused() -> None:
    for error in on_ranks(3, fit):
        assert isinstance(error, ValueError)
        assert str(error).startswith("accumulation_steps: got 8 batches per update of all ranks together")
    with pytest.raises(TypeError, match=r"communicator: expected sparse_mixer.distributed.MPI, Torch or"):
        fit("mpi")


class FailsAt(training.Callback):
    def __init__(self, hook: str, rank: int) -> None:
        setattr(self, hook, self._fail)
        self.rank = rank

    def _fail(self, trainer: Any, *logs: Any) -> None:
        if trainer.rank == self.rank and trainer.step == 3:
            raise OSError("disk full")


@pytest.mark.parametrize("hook", ["on_step_begin", "on_step_end"])
def test_an_error_of_one_rank_ends_all(hook: str) -> None:
    errors = on_ranks(4, lambda c: fit(c, callbacks=[FailsAt(hook, 1)]))
    assert isinstance(errors[1], OSError)
    for error in errors[:1] + errors[2:]:
        assert isinstance(error, distributed.RankError)
        assert str(error) == "rank 1 failed: OSError: disk full"


def test_an_error_in_the_middle_of_an_update_ends_all() -> None:
    class Fails(models.BertPretrainerV2):
        rank = 0

        def loss_and_gradients(self, batch: Any, **options: Any) -> Any:
            found = super().loss_and_gradients(batch, **options)
            if self.rank == 1 and np.ravel(batch["input_word_ids"]).sum() % 5 == 0:
                raise FloatingPointError("the loss is nan")
            return found

    def work(communicator: Any) -> None:
        model = Fails(small_encoder(num_threads=1), "gelu", seed=0)
        model.rank = communicator.rank
        fit(communicator, model, {k: v for k, v in texts().items() if k != "next_sentence_labels"})

    for error in on_ranks(2, work):
        assert isinstance(error, FloatingPointError)
        assert "was not made: the loss is nan" in str(error)


def test_different_data_are_noticed() -> None:
    def work(communicator: Any) -> None:
        batch = {name: array[:4] for name, array in texts().items()}
        fit(communicator, data=iter([batch] * (9 if communicator.rank else 8)), batch_size=None, steps_per_epoch=9)

    for error in on_ranks(2, work):
        assert "data: the ranks have [0, 1] batches left for this update" in str(error)


def test_pieces_cover_what_they_are_of() -> None:
    for length in (0, 1, 16, 100, 12345):
        for count in (1, 2, 3, 8):
            found = pieces(length, count)
            assert sum(found) == length
            assert len(found) == count
            assert all(not piece % 16 for piece, rest in itertools.pairwise(found) if rest)


def test_gradients_on_lease_are_nobody_elses() -> None:
    from sparse_mixer.gradients import Gradients

    (buffer,) = Gradients(small_encoder()).buffers
    lease = buffer.lease()
    for use in (buffer.clear, buffer.lease, buffer.global_norm, lambda: buffer.get(0)):
        with pytest.raises(ValueError, match=r"gradients: they are on lease"):
            use()
    with pytest.raises(ValueError, match=r"slice: 0\.\.1 are not finished"):
        lease.slice(0, 1)
    buffer.finish()
    array = np.asarray(lease.slice(0, 16))
    with pytest.raises(ValueError, match=r"or there is a slice of some of them"):
        lease.slice(15, 17)
    array[:] = 3.0
    del lease
    with pytest.raises(ValueError, match=r"gradients: they are on lease"):
        buffer.clear()
    del array
    assert buffer.lease() is not None
    assert buffer.global_norm() > 0
