#!/usr/bin/env python3
"""Counts the instructions that Ringbouncer's shards execute for a transaction, one by one, and holds them against a budget.

The kernel stops every shard's thread after each of its instructions (ptrace(2), PTRACE_SINGLESTEP), so the figure needs no hardware
counter and does not depend on the machine's load or clock; a toolchain other than the budget's makes other code, though, and then
nothing is enforced. The load is one client of the null server, transaction after transaction; counted is the difference of two
runs, without start-up, logins and what an idle pooler does meanwhile.

    benches/instructions.py                      # simple and prepared protocol, 1 shard, against benches/instructions.budget
    benches/instructions.py --shards 1,2,4,8     # also: does a transaction cost more among more shards?
    benches/instructions.py --update             # writes the budget; say in the commit why it went up

Needs a release build of Ringbouncer and of loadtest/peers, and pgbench.
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "loadtest")]

import throwaway  # noqa: E402

BUDGET = ROOT / "benches/instructions.budget"
TOLERANCE = 0.02
FEW, MANY = 20, 100
IDLE_SECONDS = 2
PROTOCOLS = ("simple", "prepared")

# ptrace(2), linux/ptrace.h, wait(2).
SINGLESTEP, DETACH, SEIZE, INTERRUPT = 9, 17, 0x4206, 0x4207
EVENT_STOP = 128
WALL = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long
libc.waitpid.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int)


def ptrace(request, tid, data=None):
    if libc.ptrace(request, tid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}) of thread {tid}")


class Counter:
    """Steps all shards of a pooler; to be used from one thread."""

    def __init__(self, pid):
        tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
        self.tids = [int(task.name) for task in tasks if (task / "comm").read_text().startswith("shard-")]
        # Exit codes of other children: waiting for any of the threads takes them, too.
        self.ended = {}
        if not self.tids:
            raise throwaway.StartError("the pooler has no thread of a shard")
        for tid in self.tids:
            ptrace(SEIZE, tid)
            ptrace(INTERRUPT, tid)

    def count_until(self, is_over):
        """Instructions executed until `is_over()`, which is asked now and then."""
        status, count, since_asked = ctypes.c_int(), 0, 0
        step, wait = libc.ptrace, libc.waitpid
        while True:
            tid = wait(-1, ctypes.byref(status), WALL | os.WNOHANG)
            if tid > 0 and tid in self.tids:
                # Any other stop, at first and after a group's, is no instruction.
                count += status.value >> 8 == signal.SIGTRAP
                step(SINGLESTEP, tid, None, None)
                since_asked += 1
            elif tid > 0:
                self.ended[tid] = os.waitstatus_to_exitcode(status.value)
            if tid <= 0 or since_asked > 20_000:
                if is_over():
                    return count
                since_asked = 0


def pgbench(port, protocol, transactions):
    script = "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;\n"
    command = [throwaway.postgres_bin() / "pgbench", "-n", "-M", protocol, "-f", "/dev/stdin", "-h", "127.0.0.1", "-p", str(port)]
    command += ["-U", throwaway.SUPERUSER, "-c", "1", "-t", str(transactions), "postgres"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    child.stdin.write(script.encode())
    child.stdin.close()
    return child


def counted(counter, port, protocol, transactions, idle_rate):
    """Instructions of one run, without what the time alone costs."""
    start = time.monotonic()
    child = pgbench(port, protocol, transactions)
    total = counter.count_until(lambda: child.pid in counter.ended)
    child.returncode = counter.ended.pop(child.pid)
    if child.returncode != 0:
        raise throwaway.StartError(f"pgbench failed: {child.stderr.read().decode()}")
    return total - idle_rate * (time.monotonic() - start)


def per_transaction(directory, null_port, shards):
    """Protocol -> instructions per transaction."""
    config = throwaway.ringbouncer_config(null_port, ["postgres"], 4, 100)
    program = throwaway.start_ringbouncer(directory, config, shards, f"counted-{shards}")
    with throwaway.stopping(program):
        for protocol in PROTOCOLS:
            # The pool's first server is opened by somebody else.
            pgbench(program.port, protocol, 1).wait(timeout=60)
        counter = Counter(program.pid)
        try:
            until = time.monotonic() + IDLE_SECONDS
            idle_rate = counter.count_until(lambda: time.monotonic() > until) / IDLE_SECONDS
            found = {}
            for protocol in PROTOCOLS:
                rounds = []
                for _ in range(3):
                    few, many = (counted(counter, program.port, protocol, count, idle_rate) for count in (FEW, MANY))
                    rounds.append((many - few) / (MANY - FEW))
                found[protocol] = statistics.median(rounds)
                print(f"# {shards} shards, {protocol}: {', '.join(f'{each:.0f}' for each in rounds)}", file=sys.stderr, flush=True)
            return found
        finally:
            os.kill(program.pid, signal.SIGKILL)


@contextlib.contextmanager
def null_server(directory):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    binary = target / "peers/release/nullserver"
    child = throwaway.spawn([binary], directory, directory / "null.log", {}, signal.SIGKILL, stdout=subprocess.PIPE)
    try:
        yield int(child.stdout.readline().split()[1].rsplit(b":", 1)[1])
    finally:
        child.kill()
        child.wait()


def read_budget():
    lines = BUDGET.read_text().splitlines() if BUDGET.exists() else []
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def write_budget(toolchain, found):
    text = "Instructions per transaction of one client, one shard, null server; benches/instructions.py reads and writes this.\n\n"
    text += f"toolchain = {toolchain}\n" + "".join(f"{name} = {value:.0f}\n" for name, value in found.items())
    BUDGET.write_text(text)


def over_budget(found):
    """Prints how the figures stand to the budget; the cases that cost too much."""
    budget, toolchain = read_budget(), subprocess.check_output(["rustc", "--version"], text=True).strip()
    over = []
    for name, value in found.items():
        allowed = float(budget.get(name, 0))
        change = value / allowed - 1 if allowed else 0.0
        print(f"{name:10} {value:8.0f} instructions per transaction, budget {allowed:8.0f}: {change:+.1%}")
        over += [name] if change > TOLERANCE else []
    if budget.get("toolchain") != toolchain:
        print(f"the budget was made with {budget.get('toolchain')}, this is {toolchain}: nothing is enforced")
        return []
    return over


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", default="1", help="numbers of shards, with commas; the budget is for 1")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    with throwaway.work_dir("instructions") as directory, null_server(directory) as null_port:
        numbers = [int(number) for number in arguments.shards.split(",")]
        found = {shards: per_transaction(directory, null_port, shards) for shards in numbers}
    for shards, by_protocol in found.items():
        cells = "; ".join(f"{protocol} {value:.0f}" for protocol, value in by_protocol.items())
        print(f"{shards} shards: {cells} instructions per transaction")
    if 1 not in found:
        return
    if arguments.update:
        write_budget(subprocess.check_output(["rustc", "--version"], text=True).strip(), found[1])
    over = over_budget(found[1])
    if over:
        sys.exit(f"over budget: {', '.join(over)}. Make it cheaper, or run with --update and say in the commit what it buys")


if __name__ == "__main__":
    main()
