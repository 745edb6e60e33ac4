#!/usr/bin/env python3
"""Instructions per transaction in user space, and hand-offs, with 1 shard and with several: benches/instructions.py

Callgrind counts, so the numbers do not depend on the machine's load, clock or number of cores. Each case runs twice with
different numbers of transactions; the difference is divided by theirs, so that start, logins and end do not count.
Select-only pgbench, simple protocol. "calm" has a server for every client; "saturated" has eight clients for each.
Needs valgrind, PostgreSQL with pgbench, and a release build (RINGBOUNCER_BIN or target/release).
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
import throwaway

CASES = {"calm": {"clients": 16, "pool_size": 20}, "saturated": {"clients": 32, "pool_size": 4}}


def wrapper(directory, binary, counted):
    """A program that runs Ringbouncer under callgrind."""
    script = directory / "counted.sh"
    script.write_text(
        f'#!/bin/sh\nexec valgrind --tool=callgrind --callgrind-out-file={counted} "{binary}" "$@"\n'
    )
    script.chmod(0o755)
    return script



def run(directory, postgres, binary, case, shards, transactions):
    """Instructions and hand-offs of one run."""
    directory = directory / f"{shards}-{case['pool_size']}-{transactions}"
    directory.mkdir()
    counted = directory / "callgrind.out"
    extra = f"pool_shards = {shards}\nrebalance_clients = false\n"
    config = throwaway.ringbouncer_config(postgres.port, ["postgres"], case["pool_size"], 1000, extra)
    program = throwaway.start_ringbouncer(directory, config, shards, binary=wrapper(directory, binary, counted))
    with throwaway.stopping(program):
        each = transactions // case["clients"]
        command = ["pgbench", "-n", "-S", "-h", "127.0.0.1", "-p", str(program.port), "-U", "postgres"]
        command += ["-c", str(case["clients"]), "-t", str(each), "postgres"]
        subprocess.run(command, capture_output=True, check=True, timeout=900)
        header = subprocess.run(
            ["psql", "-h", "127.0.0.1", "-p", str(program.port), "-U", "postgres", "-d", "ringbouncer", "-AF", " ", "-c", "SHOW SHARDS"],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.splitlines()
        at = header[0].split().index("handoffs_in")
        hand_offs = sum(int(line.split()[at]) for line in header[1:] if not line.startswith("("))
    found = re.search(r"Collected : (\d+)", throwaway.tail(program.log, 50))
    if not found:
        raise throwaway.StartError(f"callgrind counted nothing:\n{throwaway.tail(program.log)}")
    return int(found[1]), hand_offs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="1,2,4,8")
    parser.add_argument("--transactions", type=int, default=6400, help="in the longer run; a quarter in the shorter")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("valgrind not found (on Debian: apt-get install valgrind)")
    binary = throwaway.ringbouncer_binary()
    print("| shards | pool | instructions per transaction | hand-offs |\n| ---: | --- | ---: | ---: |")
    with throwaway.work_dir("instructions") as directory, throwaway.stopping(
        throwaway.start_postgres(directory)
    ) as postgres:
        init = ["pgbench", "-i", "-q", "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres", "postgres"]
        subprocess.run(init, capture_output=True, check=True, timeout=120)
        for name, case in CASES.items():
            for shards in map(int, options.shards.split(",")):
                few, _ = run(directory, postgres, binary, case, shards, options.transactions // 4)
                many, hand_offs = run(directory, postgres, binary, case, shards, options.transactions)
                each = (many - few) / (options.transactions * 3 // 4)
                share = hand_offs / options.transactions
                print(f"| {shards} | {name} | {each:,.0f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
