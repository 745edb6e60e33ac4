"""One measurement: a load against one port, with the pooler's CPU time over the same window.

With pgbench the window opens one second after it has connected everybody and closes shortly before it ends, so that neither
connecting nor leaving is in it. Transactions, latencies and CPU time are all taken over that same window: the first two
from pgbench's log of every transaction (or of a sample), the last from /proc.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

import workload

WARM_UP_SECONDS = 1
# The window ends this much before pgbench does.
WINDOW_MARGIN_SECONDS = 0.15
CONNECT_SECONDS_MAX = 60


class MeasureError(Exception):
    """A run that gave no numbers, with what pgbench said."""


@dataclasses.dataclass(frozen=True)
class Load:
    """How pgbench is run, the same for every case."""

    pgbench: pathlib.Path
    environment: dict
    seconds: int
    threads: int
    sampling_rate: float


def measure(load, contender, case):
    """Runs one case and returns its numbers as a dict (times in microseconds unless the name says otherwise)."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ringbouncer-load.", dir=shm) as directory:
        child = subprocess.Popen(
            command(load, contender, case, directory),
            env=load.environment | {"PGSSLMODE": "require" if case.uses_tls else "disable"},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            window, usage, said = watch(load, contender, child)
            memory = Memory.of(contender.pids)
        finally:
            end(child)
        if child.returncode != 0:
            raise MeasureError(f"pgbench ended with status {child.returncode}: {last_words(said)}")
        numbers = evaluate(read_logs(directory, window), window, usage, load.sampling_rate)
        return numbers | ({"resident_kib": memory.resident_kib} if contender.pids else {})


def command(load, contender, case, directory):
    arguments = [
        *(load.pgbench, *workload.pgbench_arguments(case, pathlib.Path(directory))),
        *("-h", "127.0.0.1", "-p", str(contender.port)),
        *("-c", str(case.clients), "-j", str(min(load.threads, case.clients))),
        *("-T", str(load.seconds + WARM_UP_SECONDS), "-P", str(WARM_UP_SECONDS)),
        *("-l", f"--log-prefix={directory}/log"),
    ]
    if load.sampling_rate < 1:
        arguments.append(f"--sampling-rate={load.sampling_rate}")
    return arguments


def watch(load, contender, child):
    """Waits for the first progress report, then brackets the window with two readings of the pooler's usage."""
    said, started = [], threading.Event()

    def listen():
        for line in child.stderr:
            said.append(line.decode(errors="replace"))
            if said[-1].startswith("progress:"):
                started.set()
        started.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    started.wait(CONNECT_SECONDS_MAX + WARM_UP_SECONDS)
    if not any(line.startswith("progress:") for line in said):
        end(child)
        raise MeasureError(f"pgbench did not get going: {last_words(said)}")
    before, opened = Usage.of(contender.pids), time.time()
    time.sleep(load.seconds - WINDOW_MARGIN_SECONDS)
    after, closed = Usage.of(contender.pids), time.time()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        raise MeasureError("pgbench did not end") from None
    listener.join(5)
    return (opened, closed), after.since(before), said


def end(child):
    """Stops a pgbench that is still there."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
    if child.poll() is None:
        child.kill()
        child.wait()


def last_words(said):
    words = [line.strip() for line in said if "error" in line.lower() or "fatal" in line.lower()]
    return "; ".join((words or [line.strip() for line in said])[-2:]) or "nothing on stderr"


@dataclasses.dataclass(frozen=True)
class Usage:
    """CPU time and context switches of all threads of some processes.

    The total comes from schedstat (nanoseconds); user and system only exist in clock ticks of usually 10 ms, so they
    serve as the proportion in which the total is split.
    """

    cpu_us: float = 0.0
    user_ticks: int = 0
    system_ticks: int = 0
    switches_voluntary: int = 0
    switches_forced: int = 0

    @classmethod
    def of(cls, pids):
        parts = [dataclasses.astuple(cls.of_one(pid)) for pid in pids]
        return cls(*map(sum, zip(*parts))) if parts else cls()

    @classmethod
    def of_one(cls, pid):
        cpu_ns = voluntary = forced = 0
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            # A thread may end between the listing and the reading.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                cpu_ns += int((task / "schedstat").read_text().split()[0])
                status = fields_of(task / "status")
                voluntary += int(status["voluntary_ctxt_switches"])
                forced += int(status["nonvoluntary_ctxt_switches"])
        # The name in parentheses may hold anything; the fields proper start after the last one.
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(cpu_ns / 1000, int(stat[11]), int(stat[12]), voluntary, forced)

    def since(self, before):
        """The usage between two readings."""
        return Usage(*(now - then for now, then in zip(dataclasses.astuple(self), dataclasses.astuple(before))))

    def numbers(self, transactions, seconds):
        """As columns; nothing if there was no process to watch."""
        if not self.cpu_us:
            return {}
        columns = {"cores_used": self.cpu_us / 1_000_000 / seconds}
        if transactions:
            columns |= {
                "cpu_us_per_txn": self.cpu_us / transactions,
                "switches_voluntary_per_txn": self.switches_voluntary / transactions,
                "switches_forced_per_txn": self.switches_forced / transactions,
            }
            ticks = self.user_ticks + self.system_ticks
            if ticks:
                user = self.user_ticks / ticks
                columns["cpu_user_us_per_txn"] = self.cpu_us * user / transactions
                columns["cpu_system_us_per_txn"] = self.cpu_us * (1 - user) / transactions
        return columns


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of some processes, and of the kernel for everybody: slab and socket buffers."""

    private_kib: int = 0
    resident_kib: int = 0
    kernel_kib: int = 0

    @classmethod
    def of(cls, pids):
        private = resident = 0
        for pid in pids:
            rollup = fields_of(pathlib.Path(f"/proc/{pid}/smaps_rollup"))
            private += int(rollup["Pss"].split()[0])
            resident += int(rollup["Rss"].split()[0])
        slab = int(fields_of(pathlib.Path("/proc/meminfo"))["Slab"].split()[0])
        return cls(private, resident, slab + socket_kib())


def socket_kib():
    """Memory of TCP's buffers, which is not slab."""
    for line in pathlib.Path("/proc/net/sockstat").read_text().splitlines():
        words = line.split()
        if words[0] == "TCP:" and "mem" in words:
            return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return 0


def fields_of(path):
    return dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)


def read_logs(directory, window):
    """Latencies and schedule lags of the transactions that ended within the window, and how many failed."""
    opened_us, closed_us = (int(moment * 1_000_000) for moment in window)
    latencies, lags, failed = [], [], 0
    for path in pathlib.Path(directory).glob("log.*"):
        with open(path, "rb") as log:
            for line in log:
                # client, transaction, latency, script, epoch seconds, microseconds[, schedule lag]
                fields = line.split()
                if not opened_us <= int(fields[4]) * 1_000_000 + int(fields[5]) < closed_us:
                    continue
                if not fields[2].isdigit():
                    failed += 1
                    continue
                latencies.append(int(fields[2]))
                if len(fields) > 6:
                    lags.append(int(fields[6]))
    latencies.sort()
    lags.sort()
    return latencies, lags, failed


def evaluate(logs, window, usage, sampling_rate):
    latencies, lags, failed = logs
    if not latencies:
        raise MeasureError("no transaction ended within the window")
    transactions = len(latencies) / sampling_rate
    seconds = window[1] - window[0]
    numbers = {
        "transactions": round(transactions),
        "failed": failed,
        "window_s": round(seconds, 3),
        "tps": transactions / seconds,
        "latency_avg_us": sum(latencies) / len(latencies),
        "latency_p50_us": quantile(latencies, 0.50),
        "latency_p90_us": quantile(latencies, 0.90),
        "latency_p99_us": quantile(latencies, 0.99),
        "latency_p999_us": quantile(latencies, 0.999),
        "latency_max_us": latencies[-1],
        "latency_p99_over_p50": quantile(latencies, 0.99) / max(1, quantile(latencies, 0.50)),
    }
    if lags:
        numbers |= {"lag_avg_us": sum(lags) / len(lags), "lag_p99_us": quantile(lags, 0.99)}
    return numbers | usage.numbers(transactions, seconds)


def quantile(ordered, part):
    """The smallest value that at least `part` of the (sorted, non-empty) values do not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1))]
