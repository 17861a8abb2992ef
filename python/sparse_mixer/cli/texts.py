"""``sparse-mixer embed`` and ``sparse-mixer search``: files of texts to files of vectors, and what is in them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparse_mixer.cli.progress_line import ProgressLine
from sparse_mixer.embeddings.quantize import PRECISIONS
from sparse_mixer.embeddings.shard_names import source_files, targets_in

_EMBED = """\
Encode the texts of files, in their order and in bounded memory, and write their vectors.

  sparse-mixer embed all-MiniLM-L6-v2/ texts.jsonl vectors.parquet --column body
  sparse-mixer embed all-MiniLM-L6-v2/ 'texts/*.parquet' vectors/

Files that are read: .parquet (extra "parquet"), .jsonl, .csv, .tsv, .txt (a text per line); all but the first also with
.gz behind. Files that are written: .parquet (vectors as lists of a fixed size), .npy, .jsonl. Several files go to a
folder.

Whatever happens, a file appears whole or not at all. After a crash or Ctrl-C the same command goes on where it was, and
each row is there once. Files that are done are passed over; those made by another model or otherwise are refused.
"""
_SEARCH = """\
Find the texts that are closest to a query, in files that `sparse-mixer embed` wrote by the same model.

  sparse-mixer search all-MiniLM-L6-v2/ vectors.parquet "how do I sort a list?"
  sparse-mixer search all-MiniLM-L6-v2/ 'vectors/*.parquet' --queries questions.txt --json
"""

Command = Callable[[str, Any, str, str], argparse.ArgumentParser]


def add_commands(command: Command) -> None:
    """Add both to the parser; `command` makes one of a name, a function, a summary and a description."""
    embed = command("embed", _embed, "encode the texts of files", _EMBED)
    _add_model(embed)
    embed.add_argument("input", nargs="+", help="files of texts, folders of them, or patterns such as 'texts/*.jsonl'")
    embed.add_argument("output", help="file of vectors, or a folder for those of several files")
    embed.add_argument("--column", default="text", help="column that has the texts (default text)")
    embed.add_argument(
        "--keep", action="append", metavar="COLUMN",
        help="column to write beside the vectors; may be repeated; '*' for all, '' for none (default: the texts)",
    )  # fmt: skip
    embed.add_argument("--pooling", action="append", help="mode of pooling; may be repeated (default: the folder's)")
    embed.add_argument("--max-seq-length", type=int, help="tokens per text (default: the folder's)")
    embed.add_argument("--normalize", action="store_true", help="divide vectors by their lengths")
    embed.add_argument("--truncate-dim", type=int, help="how many numbers of each vector to keep (default: all)")
    embed.add_argument("--prompt", help="text to put in front of each")
    embed.add_argument("--prompt-name", help="which of the folder's prompts to put in front")
    embed.add_argument("--precision", choices=PRECISIONS, default="float32", help="type of the numbers")
    embed.add_argument("--ranges", help="a .npy file [2, D]: least and largest value of each column, for 8-bit numbers")
    embed.add_argument("--format", choices=("parquet", "npy", "jsonl"), help="what is written to a folder")
    embed.add_argument(
        "--part-rows", type=int, default=16384, help="rows that a crash may cost at most (default 16384)"
    )
    embed.add_argument("--overwrite", action="store_true", help="replace files that are there")
    embed.add_argument("--quiet", action="store_true", help="show no progress")

    search = command("search", _search, "find texts in files of vectors", _SEARCH)
    _add_model(search)
    search.add_argument("corpus", help="file of vectors, a folder of them, or a pattern")
    search.add_argument("query", nargs="*", help="texts to search for")
    search.add_argument("--queries", help="file of texts to search for, as for embed")
    search.add_argument("--column", default="text", help="column of that file (default text)")
    search.add_argument("--top-k", type=int, default=10, help="how many to show (default 10)")
    search.add_argument("--json", action="store_true", help="print a line of JSON per query")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a model, with its tokenizer")
    parser.add_argument("--dtype", help="storage type of the weights: float32, bfloat16, float16, int8")
    parser.add_argument("--num-threads", type=int, help="most threads (default: automatic)")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per pass through the encoder (default 32)")


def _embed(options: argparse.Namespace) -> int:
    from sparse_mixer.embeddings.shards import embed_shard
    from sparse_mixer.text.encoder import TextEncoder

    inputs = source_files(options.input)
    targets = _targets(inputs, options.output, options.format, len(options.input) > 1 or inputs != options.input)
    if len(inputs) > 1 and options.precision in ("int8", "uint8") and options.ranges is None:
        raise ValueError("--ranges: missing; without them 8-bit numbers would not mean the same in all files")
    model = TextEncoder(
        options.model,
        pooling=options.pooling,
        dtype=options.dtype,
        num_threads=options.num_threads,
        max_seq_length=options.max_seq_length,
    )
    settings = {
        "column": options.column,
        "keep": None if options.keep is None else [name for name in options.keep if name],
        "batch_size": options.batch_size,
        "prompt": options.prompt,
        "prompt_name": options.prompt_name,
        "normalize_embeddings": options.normalize,
        "truncate_dim": options.truncate_dim,
        "precision": options.precision,
        "ranges": None if options.ranges is None else np.load(options.ranges, allow_pickle=False),
        "part_rows": options.part_rows,
        "overwrite": options.overwrite,
    }
    for number, (source, target) in enumerate(zip(inputs, targets, strict=True), 1):
        name = os.path.basename(source) if len(inputs) == 1 else f"[{number}/{len(inputs)}] {os.path.basename(source)}"
        line = ProgressLine(name, not options.quiet)
        try:
            shard = embed_shard(source, target, model, progress=line, **settings)
        except KeyboardInterrupt:
            line.end()
            print("sparse-mixer: interrupted; the same command goes on from here", file=sys.stderr)
            raise
        line.end()
        new = "was there" if not shard.encoded else f"{shard.encoded:,} new, {shard.seconds:.1f} s"
        print(f"{target}: {shard.rows:,} vectors, {new}", flush=True)
    return 0


def _targets(inputs: Sequence[str], output: str, form: str | None, several: bool) -> list[str]:
    """A target for each input: the output itself, or files in it, if it is a folder."""
    if several or output.endswith(os.sep) or os.path.isdir(output):
        return targets_in(output, inputs, form or "parquet")
    if form is not None:
        raise ValueError(f"--format: the name of the output says it, {output}; the option is for folders")
    return [output]


def _search(options: argparse.Namespace) -> int:
    from sparse_mixer.embeddings.shard_search import about_vectors, search_files
    from sparse_mixer.embeddings.similarity import SIMILARITIES
    from sparse_mixer.embeddings.sources import Source
    from sparse_mixer.text.encoder import TextEncoder
    from sparse_mixer.text.fingerprint import fingerprint

    queries = list(options.query)
    if options.queries is not None:
        queries += [text for rows in Source(options.queries, options.column, ()).rows() for text in rows.texts]
    if not queries:
        raise ValueError("query: missing; give a text, or a file of them with --queries")
    files = _corpus(options.corpus)
    abouts = [about_vectors(file) for file in files]
    made_by = abouts[0]["model"]
    model = TextEncoder(
        options.model,
        pooling=made_by["pooling"],
        dtype=options.dtype or made_by["dtype"],
        num_threads=options.num_threads,
        max_seq_length=made_by["max_seq_length"],
    )
    own = fingerprint(model)
    for file, about in zip(files, abouts, strict=True):
        differing = [name for name, value in own.items() if about["model"].get(name) != value]
        if differing:
            raise ValueError(f"{file}: was made by another model than {options.model}: {', '.join(differing)} differ")
    settings = abouts[0]["settings"]
    vectors = model.encode_query(
        queries,
        batch_size=options.batch_size,
        normalize_embeddings=settings["normalize_embeddings"],
        truncate_dim=settings["truncate_dim"],
        on_truncation="ignore",
    )
    score = SIMILARITIES[model.similarity_fn_name][0]
    for query, hits in zip(queries, search_files(vectors, files, options.top_k, score), strict=True):
        if options.json:
            print(json.dumps({"query": query, "hits": hits}, ensure_ascii=False, default=str))
            continue
        print(query)
        for hit in hits:
            rest = {name: value for name, value in hit.items() if name not in ("score", "file", "row")}
            shown = rest.pop("text", None) or ", ".join(f"{name}: {value}" for name, value in rest.items())
            line = " ".join(str(shown).split())
            print(f"  {hit['score']:.4f}  {os.path.basename(hit['file'])}:{hit['row']}  {line[:200]}")
    return 0


def _corpus(path: str) -> list[str]:
    if not os.path.isdir(path):
        return source_files([path])
    names = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    files = [name for name in names if name.endswith((".parquet", ".npy", ".jsonl")) and os.path.isfile(name)]
    if not files:
        raise ValueError(f"{path}: has no files of vectors")
    return files
