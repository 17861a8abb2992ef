"""Command line: `python -m benchmarks <command>`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable, Iterable

from benchmarks.peers import BERTS, PEERS, SENTENCE_ENCODERS, TRAINERS
from benchmarks.scaleout import EXCHANGES
from benchmarks.sentence_tasks import TASKS

DEFAULT_FOLDER = pathlib.Path("docs/benchmarks")

# PyTorch is not among the requirements of the benchmarks.
_WITHOUT_TORCH = [name for name in PEERS if name != "torch"]


def _names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads comma-separated engines out of `known`, or all of them."""

    def names(text: str) -> list[str]:
        chosen = list(known) if text == "all" else text.split(",")
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown engine {', '.join(unknown)}; known: {', '.join(known)}")
        return chosen

    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every engine")
    parser.add_argument("--save", action="store_true", help=f"write tables and data to {DEFAULT_FOLDER}/")
    commands = parser.add_subparsers(dest="command", required=True)

    inference = commands.add_parser("inference", help="sequences per second, all engines interleaved")
    inference.add_argument(
        "--engines", type=_names_among(PEERS), default=_WITHOUT_TORCH, help="comma-separated, or all"
    )
    inference.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    inference.add_argument("--rounds", type=int, default=7)
    inference.add_argument("--baseline", default="tf", choices=list(PEERS))

    bert = commands.add_parser("bert", help="BERT Base in our engine, PyTorch, TensorFlow, ONNX Runtime and OpenVINO")
    bert.add_argument("--engines", type=_names_among(BERTS), default=list(BERTS), help="comma-separated, or all")
    bert.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    bert.add_argument("--rounds", type=int, default=7)

    exported = commands.add_parser(
        "onnx", help="the exported model in ONNX Runtime and OpenVINO beside ours, TensorFlow"
    )
    exported.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    exported.add_argument("--rounds", type=int, default=7)

    training = commands.add_parser("training", help="training steps of the Base model, all engines interleaved")
    default = ["train-f32", "train-f32-recompute", "train-bf16", "train-tf"]
    training.add_argument("--engines", type=_names_among(TRAINERS), default=default, help="comma-separated, or all")
    training.add_argument("--batch", type=int, default=8)
    training.add_argument("--rounds", type=int, default=5)
    training.add_argument("--baseline", default="train-tf", choices=list(TRAINERS))

    architectures = commands.add_parser("architectures", help="Sparse Mixers beside BERT on our engine")
    architectures.add_argument("--batch", type=int, default=8)
    architectures.add_argument("--rounds", type=int, default=5)

    keras = commands.add_parser("keras", help="our Keras layer beside the direct call and TensorFlow's class")
    keras.add_argument("kinds", nargs="*", help='words of the calls wanted, such as "two blocks" (default: all)')
    keras.add_argument("--batch", type=int, default=8)
    keras.add_argument("--rounds", type=int, default=5)

    module = commands.add_parser("torch", help="our module of PyTorch beside the direct call")
    module.add_argument("--batch", type=int, default=8)
    module.add_argument("--rounds", type=int, default=5)
    module.add_argument("--mini", action="store_true", help="leave the Base model out")

    assignment = commands.add_parser("assignment", help="replacing and converting weights beside copying them")
    assignment.add_argument("--rounds", type=int, default=5)

    builds = commands.add_parser("builds", help="this build beside another one: inference and training, interleaved")
    builds.add_argument("other", type=pathlib.Path, help="folder that the other build is installed in")
    builds.add_argument("--rounds", type=int, default=15)

    profile = commands.add_parser("profile", help="where the time goes, section by section; run it by `make profile`")
    profile.add_argument("--batch", type=int, default=8)
    profile.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16", "int8"], help="storage types (default: all that apply)"
    )
    profile.add_argument("--training", action="store_true", help="training steps instead of inference")
    profile.add_argument("--rounds", type=int, default=7, help="calls of which the quickest counts")

    loops = commands.add_parser("loops", help="training steps by `fit` and by the loops of the docs")
    loops.add_argument("--batch", type=int, default=8)
    loops.add_argument("--steps", type=int, default=5)
    loops.add_argument("--rounds", type=int, default=1)

    serve = commands.add_parser("serve", help="load on the server over loopback: requests per second, p50, p99")
    serve.add_argument("--model", type=pathlib.Path, help="folder of a model (default: MiniLM's size, random weights)")
    serve.add_argument("--dtype", default="float32")
    serve.add_argument("--words", type=int, nargs=2, default=[12, 20], help="least and most words of a text")
    serve.add_argument("--clients", type=int, default=16, help="how many ask at once to find the most requests")
    serve.add_argument("--seconds", type=float, default=20, help="length of each phase")
    serve.add_argument("--load", type=float, default=0.7, help="share of the most at which times are taken")
    serve.add_argument("--option", action="append", default=[], help="further option of sparse-mixer serve")

    ray = commands.add_parser("ray", help="files of texts to vectors on a local Ray beside one process, in turn")
    ray.add_argument("--model", type=pathlib.Path, help="folder of a model (default: MiniLM's size, random weights)")
    ray.add_argument("--dtype", default="float32")
    ray.add_argument("--minutes", type=float, default=5, help="how long each of the two encodes at least")
    ray.add_argument("--rows", type=int, default=1000, help="texts per file")
    ray.add_argument("--words", type=int, nargs=2, default=[20, 160], help="least and most words of a text")

    text = commands.add_parser("text", help="sentences to vectors with the same weights, all engines interleaved")
    text.add_argument("--model", type=pathlib.Path, required=True, help="folder of a sentence encoder (BERT)")
    names = list(SENTENCE_ENCODERS)
    text.add_argument("--engines", type=_names_among(names), default=names, help="comma-separated, or all")
    text.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="which (default: all)")
    text.add_argument("--rounds", type=int, default=5)
    text.add_argument("--passages", type=int, default=2000, help="texts of W4")
    text.add_argument("--passage-rounds", type=int, default=3, help="rounds of W4")
    text.add_argument("--quality", action="store_true", help="measure what rounding does to vectors, not the speed")
    text.add_argument(
        "--compare", action="store_true", help="with --quality: float32 beside sentence-transformers, too"
    )

    scaleout = commands.add_parser("scaleout", help="training on several local processes; simulated on many machines")
    scaleout.add_argument("--size", choices=["base", "mini"], default="base", help="model")
    scaleout.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    scaleout.add_argument("--batch", type=int, default=8, help="examples per rank and update")
    scaleout.add_argument("--updates", type=int, default=5)
    scaleout.add_argument("--gbit", type=float, nargs="*", default=[10.0, 5.0], help="limits of the loopback; Linux")
    exchanges = list(EXCHANGES)
    scaleout.add_argument("--exchanges", nargs="+", default=exchanges, choices=exchanges, help="default: all")

    startup = commands.add_parser("startup", help="import, build, first call, peak memory")
    startup.add_argument("--engines", type=_names_among(PEERS), default=_WITHOUT_TORCH)
    startup.add_argument("--batch", type=int, default=8)

    scaling = commands.add_parser("scaling", help="sweeps over batch, length, groups, experts, threads")
    scaling.add_argument("sweeps", nargs="*", help="names of sweeps (default: all)")
    scaling.add_argument("--rounds", type=int, default=3)

    weights = commands.add_parser("weights", help="saving and loading beside copying the file; memory of loading")
    weights.add_argument("--rounds", type=int, default=7)
    weights.add_argument("--where", type=pathlib.Path, help="folder on the disk to be measured")

    load = commands.add_parser(
        "load", help="packed files: loading, first answer of a process, memory of several processes"
    )
    load.add_argument("--processes", type=int, default=8)
    load.add_argument("--rounds", type=int, default=5)
    load.add_argument("--where", type=pathlib.Path, help="folder on the disk to be measured")

    memory = commands.add_parser("memory", help="weights, conversion and calls in each storage type")
    memory.add_argument("--batch", type=int, default=8)

    ratios = commands.add_parser("ratios", help="threads, batches, groups and transforms in interleaved pairs")
    ratios.add_argument("questions", nargs="*", help="words of the pairs wanted (default: all)")
    ratios.add_argument("--rounds", type=int, default=7)

    quality = commands.add_parser("quality", help="rounding and rerouting of the narrower storage types")
    quality.add_argument("--examples", type=int, default=8)
    quality.add_argument(
        "--trained", type=pathlib.Path, nargs="+", default=[], help="results of examples: out/pretrain ..."
    )

    commands.add_parser("kernels", help="matrix products by themselves beside the multiply-add rate; needs Rust")
    commands.add_parser("peak", help="multiply-add rate of this processor")
    return parser


def main() -> None:
    """Run one command and print its table."""
    arguments = _parser().parse_args()
    folder = DEFAULT_FOLDER if arguments.save else None
    if arguments.command in ("inference", "training") and arguments.baseline not in arguments.engines:
        arguments.engines.append(arguments.baseline)
    if arguments.command == "inference":
        from benchmarks.inference import run

        text = run(
            arguments.engines, arguments.batches, arguments.threads, arguments.rounds, arguments.baseline, folder
        )
    elif arguments.command == "bert":
        from benchmarks.bert import run

        text = run(arguments.engines, arguments.batches, arguments.threads, arguments.rounds, folder)
    elif arguments.command == "onnx":
        from benchmarks.inference import run

        engines = ["ours-f32", "onnxruntime", "onnx-openvino", "openvino-f32", "tf", "tf-xla"]
        text = run(engines, arguments.batches, arguments.threads, arguments.rounds, "tf", folder, "onnx")
    elif arguments.command == "training":
        from benchmarks.training import run

        text = run(arguments.engines, arguments.batch, arguments.threads, arguments.rounds, arguments.baseline, folder)
    elif arguments.command == "architectures":
        from benchmarks.training import compare_architectures

        text = compare_architectures(arguments.batch, arguments.threads, arguments.rounds, folder)
    elif arguments.command == "keras":
        from benchmarks.keras_layer import run

        text = run(arguments.kinds, arguments.batch, arguments.threads, arguments.rounds, folder)
    elif arguments.command == "torch":
        from benchmarks.torch_module import run

        text = run(arguments.batch, arguments.threads, arguments.rounds, arguments.mini, folder)
    elif arguments.command == "assignment":
        from benchmarks.assignment import run

        text = run(arguments.threads, arguments.rounds)
    elif arguments.command == "builds":
        from benchmarks.builds import run

        text = run(arguments.other, arguments.threads, arguments.rounds)
    elif arguments.command == "profile":
        from benchmarks.profile import run

        dtypes = arguments.dtype or ["float32", "bfloat16", *([] if arguments.training else ["int8"])]
        text = run(dtypes, arguments.batch, arguments.threads, arguments.rounds, arguments.training, folder)
    elif arguments.command == "loops":
        from benchmarks.loops import run

        text = run(arguments.batch, arguments.steps, arguments.threads, arguments.rounds)
    elif arguments.command == "serve":
        from benchmarks.serve import run

        text = run(
            arguments.model,
            arguments.threads,
            dtype=arguments.dtype,
            words=arguments.words,
            clients=arguments.clients,
            seconds=arguments.seconds,
            load=arguments.load,
            options=arguments.option,
        )
    elif arguments.command == "ray":
        from benchmarks.ray_files import run

        text = run(
            arguments.model,
            arguments.threads,
            dtype=arguments.dtype,
            minutes=arguments.minutes,
            rows=arguments.rows,
            words=arguments.words,
            folder=folder,
        )
    elif arguments.command == "text" and arguments.quality:
        from benchmarks.sentence_quality import run

        text = run(
            arguments.model,
            arguments.engines,
            threads=arguments.threads,
            passages=arguments.passages,
            compare=arguments.compare,
            folder=folder,
        )
    elif arguments.command == "text":
        from benchmarks.text import run

        text = run(
            arguments.model,
            arguments.engines,
            arguments.tasks,
            threads=arguments.threads,
            rounds=arguments.rounds,
            passages=arguments.passages,
            passage_rounds=arguments.passage_rounds,
            folder=folder,
        )
    elif arguments.command == "scaleout":
        from benchmarks.scaleout import run

        text = run(
            arguments.size,
            arguments.ranks,
            arguments.batch,
            arguments.updates,
            arguments.gbit,
            arguments.exchanges,
            folder,
        )
    elif arguments.command == "startup":
        from benchmarks.startup import run

        text = run(arguments.engines, arguments.batch, arguments.threads, folder)
    elif arguments.command == "scaling":
        from benchmarks.scaling import run

        text = run(arguments.sweeps, arguments.threads, arguments.rounds, folder or pathlib.Path("out/benchmarks"))
    elif arguments.command == "weights":
        from benchmarks.weight_files import run

        text = run(arguments.threads, arguments.rounds, arguments.where, folder)
    elif arguments.command == "load":
        from benchmarks.packed_files import run

        text = run(arguments.processes, arguments.threads, arguments.rounds, arguments.where, folder)
    elif arguments.command == "memory":
        from benchmarks.memory import run

        text = run(arguments.batch, arguments.threads, folder)
    elif arguments.command == "ratios":
        from benchmarks.ratios import run

        text = run(arguments.questions, arguments.threads, arguments.rounds, folder)
    elif arguments.command == "quality":
        from benchmarks.quality import run

        text = run(arguments.examples, arguments.trained, folder)
    elif arguments.command == "kernels":
        from benchmarks.kernels import run

        text = run(folder)
    else:
        from benchmarks.peak import measure

        text = "\n".join(f"{name:18} {rate / 1e9:9.0f} G/s" for name, rate in measure(arguments.threads).items())
    print(text)


if __name__ == "__main__":
    main()
