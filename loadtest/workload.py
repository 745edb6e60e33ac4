"""What is measured: the cases of the matrix, in sections that share a backend, a pool size and TLS or not.

| workload | load | says |
| --- | --- | --- |
| select | pgbench -S, closed loop | CPU per transaction, throughput, tails |
| rate | pgbench -S --rate | the same at a low rate, where batching has nothing to batch |
| reconnect | pgbench -S -C | a login per transaction |
| large | pgbench, one row of 256 KiB | bytes relayed |
| pipeline | pgbench, ten queries in one flight | messages relayed |
| tls, tls-rate, tls-reconnect | the first three over TLS | encryption and handshakes |
| open | the swarm at a fixed rate, no coordinated omission | tails as a user sees them |
| many | the swarm, closed loop | 10,000 busy clients, which pgbench cannot drive |
| null | the swarm against the null server, closed loop | the pooler alone, and how it scales with shards |
| idle, tls-idle | the swarm connects and holds | memory per client, CPU of doing nothing |
| held | the swarm: 1,000 at a rate, alone and among all the idle ones there can be | what idle clients cost the busy |
"""

import dataclasses
import itertools

SELECT_PROTOCOLS = ["simple", "extended", "prepared"]
OPEN_LOOP_CLIENTS = 32
LARGE_SQL = "SELECT repeat('x', 262144);\n"
PIPELINE_SQL = "\\startpipeline\n" + "SELECT 1;\n" * 10 + "\\endpipeline\n"
# Held clients: as many as the limits on descriptors allow.
EVERYBODY = 100_000


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell of the matrix. `rate` is transactions per second of an open loop, 0 for a closed one; `held` clients are idle."""

    workload: str
    protocol: str
    clients: int
    rate: int = 0
    pool_size: int = 20
    held: int = 0

    @property
    def uses_tls(self):
        return self.workload.startswith("tls")

    @property
    def backend(self):
        return "null" if self.workload == "null" else "postgres"

    @property
    def is_swarm(self):
        return self.workload in ("open", "many", "null", "held", "idle", "tls-idle")

    @property
    def is_fresh(self):
        """Whether every measurement wants a process of its own: memory does not come back to where it was."""
        return self.workload in ("held", "idle", "tls-idle")

    def __str__(self):
        loop = f" at {self.rate}/s" if self.rate else ""
        held = f" among {self.held} idle" if self.held else ""
        return f"{self.workload}, {self.protocol}, {self.clients} clients{loop}{held}, pool {self.pool_size}"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The sizes that the cases are made of."""

    workloads: list
    protocols: list
    clients: list
    rates: list
    pool_sizes: list
    idle_clients: int
    busy_clients: int

    def cases(self):
        for workload in self.workloads:
            yield from CASES[workload](self)


def select(matrix, workload="select"):
    for pool, protocol, clients in itertools.product(matrix.pool_sizes, matrix.protocols, matrix.clients):
        yield Case(workload, protocol, clients, 0, pool)


def rate(matrix, workload="rate"):
    pool = matrix.pool_sizes[0]
    for protocol, rate in itertools.product(matrix.protocols, matrix.rates):
        if protocol != "extended":
            yield Case(workload, protocol, 4 if rate <= 300 else OPEN_LOOP_CLIENTS, rate, pool)


def reconnect(matrix, workload="reconnect"):
    yield Case(workload, "simple", 8, 0, matrix.pool_sizes[0])


def large(matrix):
    yield Case("large", "simple", 8, 0, matrix.pool_sizes[0])


def pipeline(matrix):
    for protocol in matrix.protocols:
        if protocol != "simple":
            yield Case("pipeline", protocol, 32, 0, matrix.pool_sizes[0])


def swarm_open(matrix):
    for protocol in matrix.protocols:
        if protocol != "extended":
            for rate in matrix.rates:
                yield Case("open", protocol, min(1000, matrix.busy_clients), rate, matrix.pool_sizes[0])


def many(matrix):
    for pool, protocol in itertools.product(matrix.pool_sizes, matrix.protocols):
        if protocol != "extended":
            yield Case("many", protocol, matrix.busy_clients, 0, pool)


def null(matrix):
    for protocol in matrix.protocols:
        for clients in matrix.clients:
            if protocol != "extended" and clients >= 8:
                yield Case("null", protocol, clients, 0, matrix.pool_sizes[0])


def idle(matrix, workload="idle"):
    yield Case(workload, "simple", matrix.idle_clients, 0, matrix.pool_sizes[0])


def held(matrix):
    rate, pool = max(matrix.rates, default=2000), matrix.pool_sizes[0]
    busy = min(1000, matrix.busy_clients)
    yield Case("held", "simple", busy, rate, pool)
    yield Case("held", "simple", busy, rate, pool, matrix.idle_clients)


def tls(matrix):
    yield from select(dataclasses.replace(matrix, pool_sizes=matrix.pool_sizes[:1]), "tls")


CASES = {
    "select": select,
    "rate": rate,
    "reconnect": reconnect,
    "large": large,
    "pipeline": pipeline,
    "open": swarm_open,
    "many": many,
    "null": null,
    "held": held,
    "idle": idle,
    "tls": tls,
    "tls-rate": lambda matrix: rate(matrix, "tls-rate"),
    "tls-reconnect": lambda matrix: reconnect(matrix, "tls-reconnect"),
    "tls-idle": lambda matrix: idle(matrix, "tls-idle"),
}


def sections(cases):
    """(backend, pool size, TLS) -> cases: one set of running contenders each."""
    found = {}
    for case in cases:
        found.setdefault((case.backend, case.pool_size, case.uses_tls), []).append(case)
    return found


def pgbench_arguments(case, directory):
    """What pgbench is told besides clients, threads, time and address."""
    arguments = ["-n", "-M", case.protocol]
    kind = case.workload.removeprefix("tls-")
    scripts = {"large": LARGE_SQL, "pipeline": PIPELINE_SQL}
    if kind in scripts:
        script = directory / f"{kind}.sql"
        script.write_text(scripts[kind])
        arguments += ["-f", str(script)]
    else:
        arguments.append("-S")
    if kind == "reconnect":
        arguments.append("-C")
    if case.rate:
        arguments.append(f"--rate={case.rate}")
    return arguments
