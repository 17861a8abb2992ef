"""Training on several local processes: exchange, overlap, updates; and what follows for many machines."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.scaleout_model import Network, Update, efficiency, fitted, update_seconds

LATENCY = 50e-6
"""Seconds of a message between machines (assumed)."""
SUM_RATE = 8e9
"""Bytes per second that a rank adds up (assumed: memory of one socket, several threads)."""
BANDWIDTHS = {"10 Gbit/s": 1.1e9, "25 Gbit/s": 2.6e9, "40 Gbit/s": 4.5e9}
"""Links between machines and what they carry (assumed)."""
EXCHANGES = {"plain": ("float32", False), "overlapped": ("float32", True), "bfloat16": ("bfloat16", True)}
"""What is sent, and whether backward goes on meanwhile."""
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CORES, CORE_EFFICIENCY, JITTER = 32, 0.8, 0.03
"""Of a machine: cores, share of linear speed-up on them, and the differences between machines (all assumed)."""


def measured(size: str, ranks: int, batch: int, updates: int, threads: int, gbit: float | None, **how: Any) -> Any:
    """Numbers of rank 0 of a run of `scaleout_rank`.

    Args:
        size: Of the model.
        ranks: Processes.
        batch: Examples per rank and update.
        updates: That are counted.
        threads: Of each process.
        gbit: Gbit/s of a loopback that all messages take; None for what the MPI uses on one machine.
        **how: ``wire`` and ``overlap``.
    """
    launcher = shutil.which("mpirun", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if launcher is None:
        raise SystemExit("scaleout: needs mpirun and mpi4py: pip install -r tests/requirements/mpi.txt")
    command = [launcher, "-n", str(ranks), sys.executable, "-m", "benchmarks.scaleout_rank", "--size", size]
    command += ["--batch", str(batch), "--updates", str(updates), "--threads", str(threads), "--wire", how["wire"]]
    command += [] if how["overlap"] else ["--no-overlap"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if gbit is not None:
        # Also between processes of one machine, as if there were a network.
        environment |= {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
        limit = f"tc qdisc add dev lo root tbf rate {gbit}gbit burst 4mb latency 100ms"
        command = ["unshare", "-n", "-r", "sh", "-c", f"ip link set lo up && {limit} && exec {shlex.join(command)}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"scaleout: {shlex.join(command)} failed:\n{done.stderr}")
    return json.loads(lines[0].removeprefix("RESULT "))


def run(
    size: str,
    ranks: list[int],
    batch: int,
    updates: int,
    gbits: list[float],
    exchanges: list[str],
    folder: pathlib.Path | None,
) -> str:
    """Measure, compare with the model, and extrapolate; return tables.

    Args:
        size: Of the model, a key of `scaleout_rank.SIZES`.
        ranks: Numbers of processes, the first of them 1.
        batch: Examples per rank and update.
        updates: That are counted.
        gbits: Speeds of a limited loopback, besides what the MPI uses on one machine.
        exchanges: Which, keys of `EXCHANGES`.
        folder: Where tables, data and plot go.
    """
    cores = len(os.sched_getaffinity(0))
    whole = measured(size, 1, batch * cores, updates, cores, None, wire="float32", overlap=False)
    single = measured(size, 1, batch, updates, 1, None, wire="float32", overlap=False)
    lines = [
        f"{size}, {batch} examples per rank, {single['bytes'] / 1e6:.0f} MB of gradients; one process: "
        f"{single['update']:.3f} s per update with 1 thread; {whole['update']:.3f} s with {cores} threads and "
        f"{batch * cores} examples",
        "",
        "| network | wire | overlap | ranks | exchange alone | update | after backward | hidden | simulated | error "
        "| of one process | more memory |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = []
    base = Update(single["compute"], single["update"] - single["compute"], [tuple(x) for x in single["ready"]])
    for gbit in [None, *gbits]:
        for wire, overlap in (EXCHANGES[name] for name in exchanges):
            found = {
                count: measured(size, count, batch, updates, 1, gbit, wire=wire, overlap=overlap)
                for count in ranks
                if count > 1
            }
            share = 1.0 if wire == "float32" else 0.5
            alone = {count: result["exchange"] for count, result in found.items()}
            network = fitted(single["bytes"], alone, LATENCY if gbit else 5e-6, SUM_RATE, share)
            for count, result in found.items():
                # Ranks of one machine share its loopback, or its memory.
                shared = dataclasses.replace(network, bandwidth=network.bandwidth * min(found) / count)
                # More ranks than cores share these.
                slower = max(1.0, count / cores)
                update = Update(base.compute * slower, base.rest * slower, [(t * slower, b) for t, b in base.ready])
                # Without a processor to spare, the thread that exchanges and one that computes share theirs.
                cost = min(0.5, result["busy"] / result["exchange"]) if overlap and count >= cores else 0.0
                simulated = update_seconds(update, count, shared, overlap=overlap, wire=share, cost=cost)
                error = simulated / result["update"] - 1
                hidden = 1 - result["exposed"] / result["exchange"]
                # The same examples on the same cores, in one process.
                ratio = f"{result['update'] / whole['update']:.2f}" if count == cores else ""
                more = (result["peak"] - single["peak"]) / 1e6
                name = "local" if gbit is None else f"{gbit:g} Gbit/s"
                rows.append({"network": name, "wire": wire, "overlap": overlap, "simulated": simulated, **result})
                lines.append(
                    f"| {name} | {wire} | {'yes' if overlap else 'no'} | {count} | {result['exchange']:.3f} s "
                    f"| {result['update']:.3f} s | {result['exposed']:.3f} s | {max(0.0, hidden):.0%} "
                    f"| {simulated:.3f} s | {error:+.0%} | {ratio} | {more:.0f} MB |"
                )
    table = extrapolated(base, batch)
    lines += ["", *table["lines"]]
    text = "\n".join(lines)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaleout.md").write_text(text + "\n")
        data = {"one thread": single, "all threads": whole, "rows": rows, "efficiency": table["efficiency"]}
        (folder / "scaleout.json").write_text(json.dumps(data, indent=1) + "\n")
        _draw(table["efficiency"], folder / "scaleout.png")
    return text


def extrapolated(base: Update, batch: int) -> dict[str, Any]:
    """Weak scaling to many machines: lines of a table, and the numbers in it."""
    speed = CORES * CORE_EFFICIENCY
    lines = [
        f"Weak scaling (simulated): {CORES} cores per machine at {CORE_EFFICIENCY:.0%} of linear, machines that differ "
        f"by {JITTER:.0%}, {LATENCY * 1e6:.0f} us per message, {SUM_RATE / 1e9:.0f} GB/s added, links of "
        + ", ".join(f"{rate / 1e9:g} GB/s ({name})" for name, rate in BANDWIDTHS.items()),
        "",
        "| examples per machine | wire | overlap | link | " + " | ".join(f"{n}" for n in NODES) + " |",
        "|---:|---|---|---|" + "---:|" * len(NODES),
    ]
    found: dict[str, list[float]] = {}
    for factor in (1, 4, 8):
        # Backward of a larger batch takes longer between one bucket and the next, the optimiser does not.
        ready = [(before * factor / speed, size) for before, size in base.ready]
        update = Update(base.compute * factor / speed, base.rest / speed, ready, JITTER)
        for wire, overlap in ((1.0, False), (1.0, True), (0.5, True)):
            for name, bandwidth in BANDWIDTHS.items():
                network = Network(bandwidth, LATENCY, SUM_RATE)
                shares = [efficiency(update, nodes, network, overlap=overlap, wire=wire) for nodes in NODES]
                dtype = "float32" if wire == 1.0 else "bfloat16"
                label = f"{batch * factor}, {dtype}, {'overlap' if overlap else 'no overlap'}, {name}"
                found[label] = shares
                cells = " | ".join(f"{share:.0%}" for share in shares)
                lines.append(f"| {batch * factor} | {dtype} | {'yes' if overlap else 'no'} | {name} | {cells} |")
    return {"lines": lines, "efficiency": found}


def _draw(efficiencies: dict[str, list[float]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 4.4), layout="constrained")
    for label, shares in efficiencies.items():
        if "10 Gbit/s" in label:
            axes.plot(NODES, shares, "o-", label=label, markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(NODES, [str(nodes) for nodes in NODES])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("machines (simulated)")
    axes.set_ylabel("share of linear speed-up")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
