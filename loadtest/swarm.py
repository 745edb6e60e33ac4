"""Measurements with the swarm of clients (loadtest/peers): drives, held clients, memory per idle client."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

import measure  # noqa: E402
import throwaway  # noqa: E402

# A statement that the null server answers as well as pgbench's tables.
QUERY = "SELECT abalance FROM pgbench_accounts WHERE aid = 1"
WARM_UP_SECONDS = 1
CONNECT_SECONDS_MAX = 180
# The kernel frees memory of closed sockets a little later.
SETTLE_SECONDS = 1.0


def programs():
    """Where the null server and the swarm are."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", throwaway.ROOT / "target"))
    return pathlib.Path(os.environ.get("RINGBOUNCER_PEERS", target / "peers/release"))


def missing():
    """What to do if they have not been built, or None."""
    if all((programs() / name).exists() for name in ("swarm", "nullserver")):
        return None
    build = "cargo build --release --manifest-path loadtest/peers/Cargo.toml --target-dir target/peers"
    return f"{programs()} has no swarm and null server: {build}"


def start_null_server(directory, threads):
    """The server that answers at once."""
    command = [programs() / "nullserver", "--listen", "127.0.0.1:0", "--threads", str(threads)]
    log = directory / "nullserver.log"
    child = throwaway.spawn(command, directory, log, {}, 9, stdout=subprocess.PIPE)
    ready = throwaway.ready_line(child)
    if "tcp=" not in ready:
        child.kill()
        raise throwaway.StartError(f"the null server did not start:\n{throwaway.tail(log)}")
    port = int(ready.split("tcp=")[1].split()[0].rsplit(":", 1)[1])
    return throwaway.Program("nullserver", child, child.pid, port, log, "", f"null server, {threads} threads", (15,))


class Swarm:
    """A running swarm; use it as a context."""

    def __init__(self, port, clients, database, tls=False):
        command = [programs() / "swarm", "--connect", f"127.0.0.1:{port}", "--clients", str(clients)]
        command += ["--user", throwaway.SUPERUSER, "--database", database, "--query", QUERY]
        if tls:
            command.append("--tls")
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.timer = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(30)
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def tell(self, command):
        self.child.stdin.write(command + "\n")
        self.child.stdin.flush()

    def hear(self, word, seconds):
        """The rest of the next line, which must begin with `word`."""
        deadline = threading.Timer(seconds, self.child.kill)
        deadline.start()
        try:
            line = self.child.stdout.readline().strip()
        finally:
            deadline.cancel()
        first, _, rest = line.partition(" ")
        if first != word:
            raise measure.MeasureError(f"the swarm said {line!r} instead of {word}")
        return rest

    def holding(self):
        return json.loads(self.hear("holding", CONNECT_SECONDS_MAX))

    def drive(self, pids, clients, rate, seconds, protocol):
        """Drives and watches the pooler; its numbers as columns."""
        self.tell(
            f"drive clients={clients} rate={rate} seconds={seconds} warm_up={WARM_UP_SECONDS} protocol={protocol}"
        )
        self.hear("open", WARM_UP_SECONDS + 30)
        before = measure.Usage.of(pids)
        self.hear("close", seconds + 30)
        usage = measure.Usage.of(pids).since(before)
        numbers = json.loads(self.hear("result", 60))
        failure, lost = numbers.pop("failure"), numbers.pop("unanswered")
        if not numbers["transactions"]:
            raise measure.MeasureError(f"no transaction ended within the window: {failure or 'nothing was said'}")
        if failure or lost:
            numbers["note"] = f"{numbers['failed']} failed, {lost} unanswered: {failure}"
        numbers["latency_p99_over_p50"] = numbers["latency_p99_us"] / max(1, numbers["latency_p50_us"])
        return numbers | usage.numbers(numbers["transactions"], numbers["window_s"])


def measure_drive(contender, case, seconds, database):
    """Connects the clients of a case (and those that only watch) and drives them."""
    with Swarm(contender.port, case.clients + case.held, database, case.uses_tls) as swarm:
        holding = swarm.holding()
        if holding["clients"] < case.clients:
            raise measure.MeasureError(f"only {holding['clients']} clients: {holding['obstacle']}")
        numbers = swarm.drive(contender.pids, case.clients, case.rate, seconds, case.protocol)
        numbers |= {"clients_held": holding["clients"], "resident_kib": measure.Memory.of(contender.pids).resident_kib}
        return numbers | note(numbers, holding)


def measure_idle(contender, case, seconds, database):
    """Memory per idle client, after login and after everybody has had a transaction; CPU while nobody does anything."""
    time.sleep(SETTLE_SECONDS)
    before = measure.Memory.of(contender.pids)
    with Swarm(contender.port, case.clients, database, case.uses_tls) as swarm:
        holding = swarm.holding()
        held = holding["clients"]
        if not held:
            raise measure.MeasureError(f"no client: {holding['obstacle']}")
        time.sleep(SETTLE_SECONDS)
        fresh = measure.Memory.of(contender.pids)
        # Slowly enough that every client gets its turn without a queue, which would be measured instead.
        swarm.drive(contender.pids, held, 0, max(1, held // 10_000), case.protocol)
        time.sleep(SETTLE_SECONDS)
        used = measure.Memory.of(contender.pids)
        start, began = measure.Usage.of(contender.pids), time.monotonic()
        time.sleep(seconds)
        usage, span = measure.Usage.of(contender.pids).since(start), time.monotonic() - began
        swarm.tell("check")
        alive = int(swarm.hear("alive", 30))
        if alive != held:
            raise measure.MeasureError(f"of {held} clients only {alive} are left")
    per_client = lambda now, then: (now - then) * 1024 / held
    numbers = {
        "clients_held": held,
        "window_s": round(span, 3),
        "user_bytes_per_client": per_client(fresh.private_kib, before.private_kib),
        "user_bytes_per_used_client": per_client(used.private_kib, before.private_kib),
        "kernel_bytes_per_client": per_client(fresh.kernel_kib, before.kernel_kib),
        "idle_cores": usage.cpu_us / 1_000_000 / span,
        "resident_kib": used.resident_kib,
    }
    return numbers | note(numbers, holding)


def note(numbers, holding):
    """Which limit was met, if one was."""
    said = [numbers["note"]] if "note" in numbers else []
    if holding["obstacle"]:
        said.append(
            f"held {holding['clients']} of {holding['wanted']} clients: {holding['obstacle']}"
            f" (limit of descriptors per process: {holding['files_per_process_max']})"
        )
    return {"note": "; ".join(said)} if said else {}
