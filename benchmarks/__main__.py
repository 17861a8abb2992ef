"""Command line: `python -m benchmarks inference | startup | scaling | peak`."""

from __future__ import annotations

import argparse
import os
import pathlib

from benchmarks.peers import PEERS

DEFAULT_FOLDER = pathlib.Path("docs/benchmarks")


def _peer_names(text: str) -> list[str]:
    names = list(PEERS) if text == "all" else text.split(",")
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown engine {', '.join(unknown)}; known: {', '.join(PEERS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every engine")
    parser.add_argument("--save", action="store_true", help=f"write tables and data to {DEFAULT_FOLDER}/")
    commands = parser.add_subparsers(dest="command", required=True)

    inference = commands.add_parser("inference", help="sequences per second, all engines interleaved")
    inference.add_argument("--engines", type=_peer_names, default=list(PEERS), help="comma-separated, or all")
    inference.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    inference.add_argument("--rounds", type=int, default=7)
    inference.add_argument("--baseline", default="tf", choices=list(PEERS))

    startup = commands.add_parser("startup", help="import, build, first call, peak memory")
    startup.add_argument("--engines", type=_peer_names, default=list(PEERS))
    startup.add_argument("--batch", type=int, default=8)

    scaling = commands.add_parser("scaling", help="sweeps over batch, length, groups, experts, threads")
    scaling.add_argument("sweeps", nargs="*", help="names of sweeps (default: all)")
    scaling.add_argument("--rounds", type=int, default=3)

    commands.add_parser("peak", help="multiply-add rate of this processor")
    return parser


def main() -> None:
    """Run one command and print its table."""
    arguments = _parser().parse_args()
    folder = DEFAULT_FOLDER if arguments.save else None
    if arguments.command == "inference":
        from benchmarks.inference import run

        if arguments.baseline not in arguments.engines:
            arguments.engines.append(arguments.baseline)
        text = run(
            arguments.engines, arguments.batches, arguments.threads, arguments.rounds, arguments.baseline, folder
        )
    elif arguments.command == "startup":
        from benchmarks.startup import run

        text = run(arguments.engines, arguments.batch, arguments.threads, folder)
    elif arguments.command == "scaling":
        from benchmarks.scaling import run

        text = run(arguments.sweeps, arguments.threads, arguments.rounds, folder or pathlib.Path("out/benchmarks"))
    else:
        from benchmarks.peak import measure

        text = "\n".join(f"{name:18} {rate / 1e9:9.0f} G/s" for name, rate in measure(arguments.threads).items())
    print(text)


if __name__ == "__main__":
    main()
