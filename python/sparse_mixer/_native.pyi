"""The Rust core. Private: the public interface is `sparse_mixer.SparseMixer` and its neighbours."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "AtomicFile",
    "Checkpoint",
    "CheckpointError",
    "CoreArray",
    "Encoder",
    "GradientLease",
    "GradientSlice",
    "Gradients",
    "Head",
    "InternalError",
    "LoadPlan",
    "Memory",
    "Optimizer",
    "Tape",
    "TrainingSnapshot",
    "__version__",
    "after_fork",
    "arguments",
    "before_fork",
    "cpu_info",
    "cross_entropy",
    "distance_buckets",
    "embed",
    "foreign_names",
    "get_num_threads",
    "learning_rate",
    "pack_bfloat16",
    "plan_load",
    "record",
    "release_scratch",
    "run_block",
    "save",
    "set_num_threads",
    "take_section_times",
    "tree_sum",
    "unpack_bfloat16",
    "weight_specs",
]

__version__: str

class InternalError(RuntimeError):
    """A bug in this library. The encoder that raised it stays usable; please report the arguments that led to it."""

class CheckpointError(ValueError):
    """A weight file is damaged, of a kind that is not read, or does not fit; the message names the file."""

@final
class AtomicFile:
    """A file being written beside its final place, in the same folder."""

    def __new__(cls, path: str | PathLike[str]) -> AtomicFile:
        """Begin to replace `path`, or a new file there; removes what killed processes left of such attempts."""

    @property
    def temporary(self) -> str:
        """The name to write to until `commit`."""

    def commit(self) -> None:
        """Bring the content to the disk and move it to its final place, in one step."""

    def discard(self) -> None:
        """Remove the temporary file; does nothing after `commit`."""

@final
class Encoder:
    """Configuration and weights of one encoder. Safe to use from several threads at once; keeps no per-call state."""

    def __new__(
        cls,
        config: str,
        provider: Callable[[str, tuple[int, ...]], npt.NDArray[np.float32]] | LoadPlan | None = None,
        *,
        activation: Callable[[Any], Any] | None = None,
        activation_derivative: Callable[[Any], Any] | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
    ) -> Encoder:
        """Build an encoder.

        Args:
            config: Canonical JSON.
            provider: Called with name and shape of each weight, in Keras order, for its initial values (float32). A
                `LoadPlan` of a file reads them from there. None samples them from the configured seed.
            activation: The function behind the activation ``"custom"``: float32 ``[rows, width]`` to the same.
            activation_derivative: Its derivative, for training.
            num_threads: Most threads per call; None follows `get_num_threads`.
            isa: Instruction set; None for the best.

        Raises:
            ValueError: An argument that cannot work.
        """

    def forward(
        self,
        word_ids: npt.NDArray[Any] | None = None,
        mask: npt.NDArray[np.float32] | None = None,
        type_ids: npt.NDArray[Any] | None = None,
        *,
        word_embeddings: npt.NDArray[np.float32] | None = None,
        dense_inputs: npt.NDArray[np.float32] | None = None,
        dense_mask: npt.NDArray[np.float32] | None = None,
        dense_type_ids: npt.NDArray[Any] | None = None,
        training: bool = False,
        seed: int = 0,
        outputs: Sequence[str] | None = None,
        check_finite: bool = False,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Encode a batch.

        All arrays are copied before the interpreter is released, so other threads may change them meanwhile.

        Args:
            word_ids: int32 or int64 [B, S]; or None with `word_embeddings`.
            mask: float32 [B, S]; None only without attention layers, or with word ids and a `pad_id`.
            type_ids: int32 or int64 [B, S].
            word_embeddings: float32 [B, S, W].
            dense_inputs: float32 [B, M, W], appended to the words; then S above is S - M.
            dense_mask: float32 [B, M].
            dense_type_ids: int32 or int64 [B, M].
            training: Training capacity factor, dropout and jitter.
            seed: Source of dropout and jitter.
            outputs: Names of the wanted outputs; None for sequence_output, pooled_output and encoder_outputs.
            check_finite: Raise ValueError naming the first block whose output is not finite.

        Returns:
            Outputs by name, and the auxiliary values of the MoE layers by name.

        Raises:
            ValueError: Shapes, ids or numbers that cannot work.
            TypeError: An array of a wrong type.
            InternalError: A bug.
        """

    def weight_specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name, without the encoder's, and shape of each weight in Keras order."""

    def gradients(self, pass_on: bool = False) -> Gradients:
        """Gradients of the weights, all zero. Those that `pass_on` hand their memory on once they have been applied."""

    def infinite(self, indices: Sequence[int]) -> list[int]:
        """Those of the weights at `indices` that are stored as float16 and hold an infinity."""

    def get_weights(self, indices: Sequence[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """Copies of the weights at `indices` in Keras order, of one moment; None for all."""

    def get_weight(self, index: int) -> npt.NDArray[np.float32]:
        """A copy of the weight at `index` in Keras order."""

    def get_rows(self, index: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Copies of the rows `ids` ``[n]`` of the table at `index`.

        Raises:
            ValueError: An id outside the table, or a weight that is no table.
        """

    def assign(self, indices: Sequence[int], weights: Sequence[npt.NDArray[np.float32]]) -> None:
        """Replace the weights at `indices`, or none if a shape is wrong."""

    def assign_changed(self, indices: Sequence[int], weights: Sequence[npt.NDArray[np.float32]]) -> None:
        """As `assign`, without weights that have these values already; rounded ones are always replaced."""

    def load_planned(self, plan: LoadPlan) -> None:
        """Replace the weights that `plan` has found in its file at once; nothing changes if one cannot be read."""

    def astype(self, dtype: str) -> Encoder:
        """A new encoder with the weights in `dtype`; weights already in it are shared until either changes."""

    def set_num_threads(self, num_threads: int | None) -> None:
        """Limit the threads per call; None follows `get_num_threads`."""

    def grouping(self, batch: int) -> tuple[int, int, int]:
        """Routing groups, tokens of each, and most tokens that an expert takes of one, at inference."""

    def memory_estimate(self, batch: int, outputs: Sequence[str] | None = None, seq: int | None = None) -> int:
        """Bytes of weights, scratch and outputs for calls with `batch` examples."""

    @property
    def config(self) -> str:
        """The canonical JSON, defaults resolved."""

    @property
    def dtype(self) -> str:
        """Storage type of the weights."""

    @property
    def isa(self) -> str:
        """Instruction set of the kernels."""

    @property
    def num_threads(self) -> int:
        """Most threads per call."""

    @property
    def weights_version(self) -> int:
        """A number that every change of the weights raises."""

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the weights that stay in a mapped file."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take."""

def distance_buckets(seq: int, buckets: int) -> list[int]:
    """The bucket of each distance from ``1 - seq`` to ``seq - 1`` (key minus query) of relative position biases."""

def run_block(
    encoder: Encoder,
    layer: int,
    x: npt.NDArray[np.float32],
    mask: npt.NDArray[np.float32] | None = None,
    seed: int | None = None,
) -> npt.NDArray[np.float32]:
    """What block `layer` makes of `x` [B, S, H].

    Args:
        encoder: Whose block it is.
        layer: Its number.
        x: The stream that it reads.
        mask: Which keys each query may see, 1 or 0, [B, S, S]; None for all.
        seed: Source of dropout and jitter; None for inference.
    """

def save(
    parts: Sequence[tuple[str, Encoder | Head]],
    path: str | PathLike[str],
    file_format: str,
    metadata: dict[str, str],
    *,
    packed: bool = False,
) -> None:
    """Write all weights of `parts`, each of one moment, as float32 to `path`, which is replaced in one step.

    Args:
        parts: Encoders and heads, each with what its weights' names start with in the file.
        path: The file.
        file_format: ``"safetensors"`` or ``"npz"``.
        metadata: Texts to go with the weights; only safetensors has them.
        packed: Whether weights are written as they are in memory, in their storage type; only for safetensors.
    """

@final
class TrainingSnapshot:
    """Weights and moments of one moment, not copied: whoever changes some of them meanwhile copies those."""

    def __new__(
        cls, parts: Sequence[tuple[Encoder | Head, Sequence[tuple[int, str]]]], optimizer: Optimizer | None
    ) -> TrainingSnapshot:
        """Take one of `parts`, each with number and name of the weights that count, and of `optimizer`."""

    @property
    def iterations(self) -> int:
        """Updates done."""

    @property
    def moments(self) -> list[str]:
        """Names of the moments."""

    def write(
        self,
        path: str | PathLike[str],
        others: Sequence[tuple[str, str, Sequence[int], npt.NDArray[np.uint8]]],
    ) -> None:
        """Replace the file `path` in one step by a .npz of `others`, the weights, and the moments below ``moments/``.

        Args:
            path: The file.
            others: More arrays: name, name of the type, shape, all bytes.
        """

@final
class Head:
    """Configuration and weights of one head. Computes with the threads and instruction set of the given encoder."""

    def __new__(cls, config: str, initializer: str, seed: int) -> Head:
        """Build a head from JSON of its kind and sizes, and of its initialiser."""

    def weight_specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each weight in Keras order."""

    def gradients(self, pass_on: bool = False) -> Gradients:
        """Gradients of the weights, all zero. Those that `pass_on` hand their memory on once they have been applied."""

    def get_weights(self, indices: Sequence[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """Copies of the weights at `indices` in Keras order; None for all."""

    def get_weight(self, index: int) -> npt.NDArray[np.float32]:
        """A copy of the weight at `index`."""

    def assign(self, indices: Sequence[int], weights: Sequence[npt.NDArray[np.float32]]) -> None:
        """Replace the weights at `indices`, or none if a shape is wrong."""

    def project(
        self,
        encoder: Encoder,
        features: CoreArray | npt.NDArray[np.float32],
        seed: int | None = None,
        position: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits [rows, num_classes] of features [..., width], or those at one position; a seed switches dropout on."""

    def project_backward(
        self,
        encoder: Encoder,
        features: CoreArray | npt.NDArray[np.float32],
        d_logits: npt.NDArray[np.float32],
        seed: int | None,
        into: Gradients,
        requested: Sequence[bool],
        position: int | None = None,
    ) -> CoreArray:
        """Gradient of the features, or of those at the position; adds those of the requested weights to `into`."""

    def masked_lm_logits(
        self, encoder: Encoder, sequence_output: CoreArray | npt.NDArray[np.float32], rows: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        """Logits [rows, vocab_size] of rows, counted over the batch, of the sequence output [B, S, H]."""

    def masked_lm_loss(
        self,
        encoder: Encoder,
        sequence_output: CoreArray | npt.NDArray[np.float32],
        rows: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        weights: npt.NDArray[np.float32],
        scale: float = 1.0,
        into: tuple[Gradients, Gradients] | None = None,
        requested: Sequence[bool] | None = None,
        requests_table: bool = True,
    ) -> tuple[tuple[float, float, float], CoreArray | None]:
        """Sums of loss, weight and correct predictions.

        With `into` (own, the encoder's) also the sequence output's gradient.
        """

@final
class Gradients:
    """Gradients of the weights of one encoder or head.

    All but `clear`, `is_leased` and `finish` raise RuntimeError if later gradients have taken over their memory.
    """

    def get(self, index: int) -> npt.NDArray[np.float32]:
        """A copy of the gradient of the weight at `index`."""

    def set(self, index: int, value: npt.NDArray[np.float32]) -> None:
        """Replace the gradient of the weight at `index`."""

    def reached(self) -> list[bool]:
        """Which gradients something has been added to, one flag per weight."""

    def clear(self) -> None:
        """Set all to zero."""

    def global_norm(self) -> float:
        """Euclidean norm over all."""

    def reach(self, weights: Sequence[bool]) -> None:
        """Count the weights with flags as reached, too."""

    def add(self, other: Gradients) -> None:
        """Add other gradients of the same weights, and count what they reach as reached."""

    def lease(self) -> GradientLease:
        """Lend the gradients out as backward finishes them; until it ends, only backward may use the others."""

    def is_leased(self) -> bool:
        """Whether somebody has them on lease, or an array of what was lent."""

    def finish(self) -> None:
        """Declare all of them finished, for whoever has them on lease."""

@final
class GradientLease:
    """The right to the gradients of one encoder or head that are finished; ends with the last of it and its slices."""

    def __len__(self) -> int:
        """Number of values, with the room between gradients."""

    def wait_ready(self, end: int) -> None:
        """Wait, without the interpreter, until all values before `end` are finished."""

    def slice(self, start: int, end: int) -> GradientSlice:
        """The values from `start` on and before `end`; one slice at a time of each value."""

@final
class GradientSlice:
    """float32 gradients that only numpy reads and writes; ``numpy.asarray`` makes an array of them without a copy."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As numpy defines it; one axis."""

def tree_sum(
    terms: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    present: Sequence[bool],
    sum: npt.NDArray[np.float32],  # noqa: A002
    num_threads: int,
) -> None:
    """Write the sum of the rows of `terms` [n, k] with flags to `sum` [k], in the order of a balanced tree.

    Rows of uint16 are the bits of bfloat16.
    """

def pack_bfloat16(values: npt.NDArray[np.float32], out: npt.NDArray[np.uint16], num_threads: int) -> None:
    """Write the bits of the bfloat16 nearest to each of `values` [k] to `out` [k]."""

def unpack_bfloat16(bits: npt.NDArray[np.uint16], out: npt.NDArray[np.float32], num_threads: int) -> None:
    """Write the numbers of which `bits` [k] are the bits as bfloat16 to `out` [k]."""

@final
class Optimizer:
    """An update rule and the moments of the weights of encoders and heads."""

    def __new__(cls, rule: str, parts: Sequence[tuple[Encoder | Head, Sequence[bool], Sequence[bool]]]) -> Optimizer:
        """Make one for `parts`, each with flags per weight: whether it decays, whether it adapts."""

    def apply(
        self,
        parts: Sequence[tuple[Encoder | Head, Gradients, Sequence[bool]]],
        learning_rate: float,
        clip_norm: float | None,
        gradient_scale: float,
    ) -> float | None:
        """Make one update, wholly or not at all; flags say which weights take part. Returns the norm if clipping.

        Ctrl-C interrupts the wait for another thread's changes, but not an update that has begun.
        """

    def state(self) -> list[tuple[str, npt.NDArray[np.float32]]]:
        """Copies of the moments by name."""

    def restore(self, step: int, arrays: Sequence[tuple[str, npt.NDArray[np.float32]]]) -> None:
        """Take over moments, or change nothing."""

    @property
    def step(self) -> int:
        """Updates done."""

    @property
    def state_bytes(self) -> int:
        """Bytes of the moments."""

@final
class CoreArray:
    """A float32 array in the core: an output of a recorded call, or a gradient of one. Never changes."""

    @property
    def shape(self) -> list[int]:
        """Sizes of the axes."""

    def numpy(self) -> npt.NDArray[np.float32]:
        """A copy."""

@final
class Memory:
    """float32 numbers in memory of the core that only numpy reads or writes; ``numpy.asarray`` makes an array of it."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """As numpy defines it; one axis."""

@final
class Tape:
    """What a forward pass kept to be differentiated, and the weights it used; gone after the first use or kept."""

    def block_output(self, layer: int) -> npt.NDArray[np.float32]:
        """A copy of what block `layer` gave, [B, S, H]; of the last block the rows of ``sequence_output``.

        Raises:
            RuntimeError: The record has been used.
            ValueError: The record does not have it.
        """

    def backward(
        self,
        into: Gradients | None = None,
        *,
        sequence_output: Sequence[tuple[int | None, CoreArray | npt.NDArray[np.float32]]] | None = None,
        pooled_output: Sequence[tuple[int | None, CoreArray | npt.NDArray[np.float32]]] | None = None,
        encoder_outputs: Sequence[npt.NDArray[np.float32] | None] | None = None,
        aux_loss_weight: float = 1.0,
        last: bool = False,
    ) -> tuple[npt.NDArray[np.float32] | None, tuple[Memory, list[int]] | None]:
        """Add the requested gradients of weights to `into`.

        Returns those of the word rows [B, S, W] if requested; and, without `into`, the memory of the weights' and where
        in it the gradient of each weight begins.

        Gradients of outputs are sums of terms, each with the position that it belongs to, or None for all positions.
        After its `last` use a persistent tape is empty, too.

        Raises:
            RuntimeError: Used before, and not persistent.
        """

def record(
    encoder: Encoder,
    word_ids: npt.NDArray[Any] | None = None,
    mask: npt.NDArray[np.float32] | None = None,
    type_ids: npt.NDArray[Any] | None = None,
    *,
    word_embeddings: npt.NDArray[np.float32] | None = None,
    dense_inputs: npt.NDArray[np.float32] | None = None,
    dense_mask: npt.NDArray[np.float32] | None = None,
    dense_type_ids: npt.NDArray[Any] | None = None,
    training: bool = True,
    seed: int = 0,
    outputs: Sequence[str] | None = None,
    check_finite: bool = False,
    recompute: bool = False,
    persistent: bool = False,
    wrt: tuple[Sequence[bool], bool] | None = None,
    in_core: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], Tape]:
    """`Encoder.forward`, and a tape of it for one use, or more if `persistent`.

    `recompute` keeps less and computes blocks again in the backward pass. `wrt` says which gradients are requested: one
    flag per weight, and whether those of the word rows; None for all. With `in_core`, sequence and pooled output are
    arrays of the core, and there are no others.
    """

def cross_entropy(
    encoder: Encoder,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    weights: npt.NDArray[np.float32],
    scale: float = 1.0,
) -> tuple[tuple[float, float, float], npt.NDArray[np.float32]]:
    """Sums of loss, weight and correct predictions over rows of logits, and the gradient of `scale` times the loss."""

def embed(
    encoder: Encoder,
    word_ids: npt.NDArray[Any],
    mask: npt.NDArray[np.float32],
    type_ids: npt.NDArray[Any],
    pooled_mask: npt.NDArray[np.float32],
    modes: list[str],
    *,
    unit_length: bool = False,
    dim: int | None = None,
    unit_length_after: bool = False,
) -> npt.NDArray[np.float32]:
    """Vectors [B, len(modes) * H] of the examples, one part per mode of pooling.

    Args:
        encoder: The encoder.
        word_ids: Integers [B, S].
        mask: What attention may look at, [B, S].
        type_ids: Integers [B, S].
        pooled_mask: Which tokens are pooled, [B, S].
        modes: ``"cls"``, ``"max"``, ``"mean"``, ``"mean_sqrt_len_tokens"``, ``"weightedmean"``, ``"lasttoken"``, or
            ``"pooled"`` for the encoder's pooler.
        unit_length: Whether each vector is divided by its length.
        dim: How many of its first numbers are then kept; None for all.
        unit_length_after: Whether what is left is divided by its length.

    Raises:
        ValueError: Inputs that the encoder does not take, an unknown mode, or no pooler.
    """

def learning_rate(config: str, step: float) -> float:
    """The learning rate of the schedule `config` (JSON) at `step`."""

@final
class Checkpoint:
    """An open weight file: safetensors, Flax msgpack, TensorFlow tensor bundle or ``.npz``."""

    def __new__(cls, path: str | PathLike[str]) -> Checkpoint:
        """Open the file or folder at `path`; reads no tensor.

        Raises:
            CheckpointError: It is damaged or of a kind that is not read.
            OSError: It cannot be read.
        """

    @property
    def format(self) -> str:
        """``"safetensors"``, ``"flax"``, ``"tensor_bundle"`` or ``"npz"``."""

    @property
    def path(self) -> str:
        """The file or folder."""

    @property
    def metadata(self) -> dict[str, str]:
        """Texts that the file carries."""

    def entries(self) -> list[tuple[str, str, list[int]]]:
        """Name, type and shape of every tensor, in the file's order."""

    def paths(self) -> list[str] | None:
        """Names by the paths of objects, in the order of `entries`, where those are numbers (a SavedModel)."""

    def read(self, index: int) -> bytes:
        """Content of the tensor at `index`: little-endian, row-major; its checksum is verified where there is one."""

    def plan(
        self,
        targets: Sequence[tuple[str, Sequence[int]]],
        prefix: str | None = None,
        *,
        first_position: int | None = None,
        zeros: list[str] = ...,
    ) -> LoadPlan:
        """Find the weights `targets` (names and shapes in Keras order), below `prefix` if there are several encoders.

        From `first_position` on, rows of a larger table of positions are taken. Weights called `zeros` are zeros where
        the file does not have them.

        Raises:
            CheckpointError: Several encoders, and no `prefix`.
        """

@final
class LoadPlan:
    """Which tensors of a file are which weights, and what does not fit."""

    @property
    def scheme(self) -> str:
        """How the file names weights: ``"keras"``, ``"tf_checkpoint"``, ``"flax"``, ..."""

    @property
    def root(self) -> str:
        """What stands before the encoder's weights in the file."""

    @property
    def reads(self) -> list[tuple[int, int, bool, int | None]]:
        """Indices of weight and tensor, whether its leading axes are swapped, and the first row taken (None: all)."""

    @property
    def zeros(self) -> list[int]:
        """Indices of the weights that count as zeros."""

    @property
    def loaded(self) -> list[tuple[str, str]]:
        """Our name and the file's name of each weight that can be loaded."""

    @property
    def missing(self) -> list[str]:
        """Weights that the file does not have."""

    @property
    def unexpected(self) -> list[str]:
        """Tensors below the root that are no weight of the encoder."""

    @property
    def shape_mismatches(self) -> list[tuple[str, str, str, str]]:
        """Our name, the file's name, the expected shape, the file's shape."""

    @property
    def dtype_mismatches(self) -> list[tuple[str, str, str, str]]:
        """Our name, the file's name, what is expected, the file's type."""

def plan_load(
    entries: Sequence[tuple[str, str, Sequence[int]]],
    targets: Sequence[tuple[str, Sequence[int]]],
    prefix: str | None = None,
    *,
    path: str,
    first_position: int | None = None,
    zeros: list[str] = ...,
) -> LoadPlan:
    """`Checkpoint.plan` for tensors that Python reads itself; `path` is the file's name in errors."""

def arguments() -> list[tuple[str, str, bool, str, str, str, list[str]]]:
    """The arguments of an encoder that the core sees.

    Name; kind of value; whether None stands for "not given"; default as JSON; range in words, or empty; ``"required"``
    or ``"keras"`` (TensorFlow's) or ``"extension"`` (ours); and where the kind is ``"name"``, the names it can be.
    """

def weight_specs(config: str) -> list[tuple[str, list[int]]]:
    """Name and shape of each weight of the encoder with this canonical JSON, in Keras order."""

def foreign_names(scheme: str, name: str, shape: Sequence[int]) -> list[str]:
    """The ways in which `scheme` may spell our weight `name` of `shape`, the usual one first."""

def before_fork() -> None:
    """Wait until no weights are half updated, and let no update begin. Called before a fork, not by users."""

def after_fork() -> None:
    """Let updates begin again. Called after a fork in the parent."""

def cpu_info() -> dict[str, Any]:
    """What the kernels found.

    Returns:
        Dict of ``isa`` (in use by default), ``available`` (names, slowest first) and ``num_threads`` (default).
    """

def set_num_threads(num_threads: int | None) -> None:
    """Set the most threads of calls on encoders without a number of their own; None for the automatic choice.

    Automatic is ``SPARSE_MIXER_NUM_THREADS`` if set, else what CPU affinity and control-group quota allow, at most
    ``OMP_NUM_THREADS``.
    """

def get_num_threads() -> int:
    """Most threads of calls on encoders without a number of their own."""

def take_section_times() -> list[tuple[str, str, float, int, int]] | None:
    """Return what every section of the core has taken since the last call, and begin again at zero.

    One tuple per section: part of the model, kind of work, seconds of all threads added, calls, operations of products.
    None in builds without the feature ``section-timers``.
    """

def release_scratch() -> None:
    """Give back the scratch memory that is kept between calls."""
