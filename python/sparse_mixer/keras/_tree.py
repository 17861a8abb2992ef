"""Where weights are in the tree of TensorFlow's layers, which the names in checkpoints and ``.weights.h5`` follow."""

from __future__ import annotations

_TOP = {
    "word_embeddings": "_embedding_layer",
    "position_embedding": "_position_embedding_layer",
    "type_embeddings": "_type_embedding_layer",
    "embeddings/layer_norm": "_embedding_norm_layer",
    "embedding_projection": "_embedding_projection",
    "pooler_transform": "_pooler_layer",
}

_IN_BLOCK = {
    "linear_transform": "_attention_cls",
    "self_attention/query": "_attention_cls._query_dense",
    "self_attention/key": "_attention_cls._key_dense",
    "self_attention/value": "_attention_cls._value_dense",
    "self_attention/attention_output": "_attention_cls._output_dense",
    "moe/experts/intermediate": "_feedforward_cls._experts.intermediate_layer",
    "moe/experts/output": "_feedforward_cls._experts.output_layer",
    "moe/router/router_weights": "_feedforward_cls._router.router_weights",
    "self_attention_layer_norm": "_attention_layer_norm",
    "intermediate": "_intermediate_dense",
    "output": "_output_dense",
    "output_layer_norm": "_output_layer_norm",
}

BLOCK = "transformer/layer_"


def place(key: str) -> tuple[int | None, list[str], str]:
    """Where the weight `key` is: index of its block or None, attributes that lead to its layer, its own name.

    Examples:
        >>> place("transformer/layer_1/self_attention/query/kernel")
        (1, ['_attention_cls', '_query_dense'], 'kernel')
    """
    owner, _, leaf = key.rpartition("/")
    if not owner.startswith(BLOCK):
        return None, _TOP.get(owner, owner.replace("/", "_")).split("."), leaf
    block, _, inner = owner.removeprefix(BLOCK).partition("/")
    # What TensorFlow's class does not have goes by its own name.
    return int(block), _IN_BLOCK.get(inner, inner.replace("/", "_")).split("."), leaf
