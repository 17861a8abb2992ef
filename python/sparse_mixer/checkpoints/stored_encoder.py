"""An encoder's methods for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from sparse_mixer._core.calls import CalledEncoder
from sparse_mixer._core.extras import require
from sparse_mixer._core.paths import PathLike
from sparse_mixer.checkpoints import encoder_files
from sparse_mixer.checkpoints.report import LoadReport


class StoredEncoder(CalledEncoder):
    """An encoder that can be written to files and read from them; base of `SparseMixer`."""

    def save(self, path: PathLike, *, file_format: str | None = None, packed: bool = False) -> None:
        """Write the encoder to a file, which is replaced in one step: a crash leaves the old file or the new one.

        Args:
            path: The file. Its ending chooses the format: ``.npz`` and ``.weights.h5`` hold the weights alone
                (TensorFlow's `load_weights` reads the latter, for the model
                ``tf_keras.Model(net.inputs, net(net.inputs))``; needs the extra ``h5``), any other name is our own
                format: safetensors with the configuration, for `load`.
            file_format: ``"safetensors"``, ``"npz"`` or ``"weights_h5"``, whatever the ending; or ``"huggingface"``
                for a folder at `path` that `transformers` loads, of an encoder that is a BERT, ELECTRA or FNet
                (``"huggingface:roberta"`` and so on for that kind of model).
            packed: Whether weights are written as the core keeps them, in their storage type: `load` then maps the file
                instead of reading it, which takes milliseconds, and processes share its pages. Such files are for this
                library alone.

        Weights are written as float32, unless `packed`; `load` restores the `dtype` that the encoder has.

        Raises:
            ValueError: The configuration holds a Python callable, the ending is that of an unsupported format, or
                `packed` with another format than our own.
            OSError: The file cannot be written; the old one is untouched.
            KeyboardInterrupt: Interrupted; the old file is untouched.
        """
        encoder_files.save(self, path, file_format=file_format, packed=packed)

    def to_onnx(
        self,
        path: PathLike,
        *,
        outputs: Sequence[str] = ("sequence_output", "pooled_output"),
        inputs: Sequence[str] | Mapping[str, Any] | None = None,
        opset: int = 18,
        dtype: str = "float32",
        external_data: bool | None = None,
    ) -> None:
        """Write the encoder's inference as an ONNX model, for runtimes such as ONNX Runtime and OpenVINO.

        Batches may have any size; sequences any length where the encoder takes shorter ones. Experts run on the tokens
        they are given, no others. Ids are not checked: what an id outside its table gives is the runtime's choice.
        ``docs/onnx.md`` shows models in use. Needs the extra ``onnx``.

        Args:
            path: The file, which is replaced in one step.
            outputs: As in a call. ``"encoder_outputs"`` becomes outputs ``encoder_output_0``, ... of all blocks;
                ``"routing"`` becomes ``routing_<layer>_indices`` and ``routing_<layer>_probabilities``.
            inputs: Names of the model's inputs among those of a call, perhaps each with its type: ids may be
                ``"int32"`` or ``"int64"``, masks these or ``"float32"``, embeddings ``"float32"`` or ``"float16"``.
                None for ids, mask and types as int32, with the dense inputs if the encoder was made
                `with_dense_inputs`; embeddings stand for the ids where there is an own `embedding_layer`. With a
                `pad_id`, or without attention, ``"input_mask"`` may be left out.
            opset: Version of the operators, 18 to 23.
            dtype: ``"float16"`` rounds kernels and tables as the encoder's own float16 does and halves the file;
                arithmetic is float32 either way.
            external_data: Whether the weights go to a file of their own, ``<path>.data``, beside which the model must
                stay. None for where they have 2 GB or more, which one file cannot hold.

        Weights of an encoder in bfloat16, float16 or int8 are those it computes with; what it rounds besides is not
        rounded in the model.

        Raises:
            ImportError: onnx is not installed.
            ValueError: The activation is a Python function; an unknown name; inputs that do not suffice.
            OSError: The file cannot be written.
        """
        require("onnx", "onnx")
        from sparse_mixer._onnx.export import export

        export(self, path, outputs=outputs, inputs=inputs, opset=opset, dtype=dtype, external_data=external_data)

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        config: Mapping[str, Any] | None = None,
        prefix: str | None = None,
        strict: bool = True,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder from a file.

        Args:
            path: A file of `save`, a folder of a Hugging Face BERT, RoBERTa, ELECTRA, DistilBERT or FNet, of
                google-research/bert or of KerasHub's BERT, or with `config` anything that `load_weights` reads. A
                folder without a pooler makes an encoder without one.
            config: Arguments of the constructor, for files that hold weights alone.
            prefix: Where in the file the encoder is, if there are several.
            strict: Whether every weight must be there. Otherwise those that are not are initialised; `loaded_from`
                names them.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of the file, for example
                ``dtype="bfloat16"``. A smaller `max_sequence_length` takes the first positions, a smaller
                `num_layers` the first layers, and ``with_pooler=False`` leaves out the pooler.

        Raises:
            CheckpointError: The file is damaged, or its weights do not fit its configuration; the message names file
                and weights.
            ValueError: There is no configuration.
            OSError: The file cannot be read.
        """
        options: Any = {"prefix": prefix, "strict": strict, "num_threads": num_threads, "isa": isa}
        return encoder_files.load(cls, path, config=config, **options, **changes)

    @classmethod
    def from_flax(
        cls,
        params: PathLike | Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        prefix: str | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder from a checkpoint of the paper's JAX code, with ``semantics="paper"``. JAX is not needed.

        Args:
            params: The folder of a checkpoint (``replicated_checkpoint_<step>``, and for models with experts one
                ``shard-<p>-of-<P>_checkpoint_<step>`` per host; the latest complete step is taken), a file of such,
                or the parameters: a mapping of slash paths such as ``"encoder/embedder/word/embedding"`` to arrays,
                or nested mappings. Heads and optimiser state beside the encoder are passed over.
            config: Keys of the JAX code's configuration: ``model_arch``, ``d_model``, ``moe_layout``, ``pad_id``, ...
                Missing ones have the JAX code's defaults; ``vocab_size`` is that of the word table. Keys that do
                not belong to the encoder (training, data) are ignored; `ignored_config_keys` has them.
            prefix: Where among the parameters the encoder is, if there are several.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of `config`, for example
                ``router_dtype="bfloat16"`` or ``group_mixup=True`` to follow the JAX code exactly.

        Raises:
            CheckpointError: Files are damaged or incomplete, or the weights do not fit `config`.
            ValueError: A name in `config` is unknown, or ``pad_id`` is missing where there is attention.
            OSError: Files cannot be read.
        """
        return encoder_files.from_flax(cls, params, config, prefix=prefix, num_threads=num_threads, isa=isa, **changes)

    @classmethod
    def from_preset(
        cls,
        name: str,
        weights: PathLike | Mapping[str, Any] | None = None,
        *,
        prefix: str | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder with a published configuration. Nothing is downloaded: weights come from a file you have.

        Examples:
            >>> sizes = dict(vocab_size=100, hidden_size=64, inner_dim=128)
            >>> encoder = SparseMixer.from_preset("sparse_mixer_small", **sizes, seed=0)
            >>> encoder.summary(lambda text: print(text.splitlines()[-1].split(":")[0]))
            Preset 'sparse_mixer_small' is a configuration without weights

        Args:
            name: One of ``"sparse_mixer_base"``, ``"fast_sparse_mixer_base"`` (half the expert capacity),
                ``"sparse_mixer_small"``, ``"fast_sparse_mixer_small"`` (8 layers), ``"bert_base"`` and
                ``"fnet_base"``. All have ``semantics="paper"``, 512 positions and 4 type ids.
            weights: What `load_weights` reads; None stands for random weights.
            prefix: Where in the file the encoder is, if there are several.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of the preset. Set `pad_id` to the tokenizer's;
                the preset has 0. Without `vocab_size` it is that of the file, or 32,000.

        Raises:
            ValueError: An unknown name.
            CheckpointError: The file is damaged, or its weights do not fit.
            OSError: The file cannot be read.
        """
        return encoder_files.from_preset(cls, name, weights, prefix=prefix, num_threads=num_threads, isa=isa, **changes)

    def load_weights(
        self,
        source: PathLike | Mapping[str, Any],
        *,
        strict: bool = True,
        prefix: str | None = None,
    ) -> LoadReport:
        """Replace the weights by those of a file: all at once, or on failure none.

        The encoder is found inside larger models (classifiers, pre-training models) by its weights' names. Neither
        TensorFlow nor JAX is needed.

        Args:
            source: One of

                * a file of `save` or another safetensors or ``.npz`` file with Keras names,
                * a TensorFlow checkpoint (prefix, ``.index`` file or folder) or SavedModel folder,
                * a Keras ``.weights.h5``, legacy ``.h5`` or ``.keras`` file (extra ``h5``),
                * a Flax msgpack file, or the folder of a training step with its shards,
                * a folder or safetensors file of Hugging Face's BERT or FNet,
                * a mapping of names, in any of these schemes, to arrays.
            strict: Whether every weight must be there, and nothing else below the encoder's place in the file.
            prefix: Where in the file the encoder is, if there are several.

        Returns:
            What was loaded from where, and with ``strict=False`` what was not.

        Raises:
            CheckpointError: The file is damaged or does not fit; nothing has changed.
            OSError: The file cannot be read.
        """
        return encoder_files.load_weights(self, source, strict=strict, prefix=prefix)

    def load_report(self, source: PathLike | Mapping[str, Any], *, prefix: str | None = None) -> LoadReport:
        """What `load_weights` would load and what does not fit; reads no weight and changes nothing.

        Args:
            source: As in `load_weights`.
            prefix: As in `load_weights`.
        """
        return encoder_files.load_report(self, source, prefix=prefix)
