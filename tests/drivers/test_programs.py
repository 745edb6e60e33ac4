"""psql and pgbench, as a person or a cron job uses them, and node-postgres through its own test runner."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

import throwaway
from conftest import POOL_SIZE, ROOT

HERE = pathlib.Path(__file__).resolve().parent


def psql(target, *arguments, stdin=None, check=True):
    command = [throwaway.postgres_bin() / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", *arguments]
    done = subprocess.run(command, env=target.environment(), input=stdin, capture_output=True, text=True, timeout=40)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done


def pgbench(target, *arguments):
    command = [throwaway.postgres_bin() / "pgbench", *arguments]
    done = subprocess.run(command, env=target.environment(), capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_psql_runs_a_script_with_transactions(target, table):
    script = f"""
        BEGIN; INSERT INTO {table} VALUES (1, 'kept'); COMMIT;
        BEGIN; INSERT INTO {table} VALUES (2, 'dropped'); ROLLBACK;
        SELECT id, text FROM {table};
    """
    assert psql(target, stdin=script) == "1|kept\n"


def test_psql_copies_in_and_out(target, table):
    lines = "".join(f"{number}\ttext {number}\n" for number in range(2000))
    psql(target, "-c", f"\\copy {table} FROM STDIN", stdin=lines)
    assert psql(target, "-c", f"\\copy (SELECT * FROM {table} ORDER BY id) TO STDOUT") == lines


def test_psql_describes_tables(target, table):
    assert "id|integer" in psql(target, "-c", f"\\d {table}")


def test_psql_stops_at_an_error_with_its_status(target):
    done = psql(target, stdin="SELECT 1;\nSELECT 1/0;\nSELECT 2;\n", check=False)
    assert (done.returncode, done.stdout) == (3, "1\n")
    assert "division by zero" in done.stderr


def test_psql_fetches_with_a_cursor(target):
    out = psql(target, "-v", "FETCH_COUNT=100", "-c", "SELECT generate_series(1, 1500)")
    assert out.split() == [str(number) for number in range(1, 1501)]


@pytest.fixture(scope="module")
def pgbench_tables(target):
    pgbench(target, "-i", "-q", "-s", "1")


@pytest.mark.parametrize(
    "protocol", ["simple", "extended", pytest.param("prepared", marks=pytest.mark.prepared)]
)
@pytest.mark.parametrize("script", ["select-only", "tpcb-like"])
def test_pgbench_loses_no_transaction(target, pgbench_tables, server, protocol, script):
    # pgbench prepares each statement at its first use and waits for it, all clients of a thread with it: in a
    # transaction, with more clients than servers, it waits for itself whatever the pooler.
    waits_for_itself = protocol == "prepared" and script == "tpcb-like"
    clients, transactions = (POOL_SIZE if waits_for_itself else POOL_SIZE * 3), 40
    before = history(server)
    # A thread for each client: pgbench waits for the answer to a Parse with the whole thread. One client in line for
    # a server would keep those from going on who hold one.
    arguments = ["-n", "-M", protocol, "-b", script, "-c", str(clients), "-j", str(clients), "-t", str(transactions)]
    out = pgbench(target, *arguments)
    processed = re.search(r"actually processed: (\d+)/(\d+)", out)
    assert processed and processed[1] == processed[2] == str(clients * transactions)
    if script == "tpcb-like":
        assert history(server) - before == clients * transactions
        assert server.execute("SELECT sum(abalance) FROM pgbench_accounts").fetchone() == server.execute(
            "SELECT sum(delta) FROM pgbench_history"
        ).fetchone()


@pytest.mark.prepared
def test_pgbench_that_reconnects_for_every_transaction_works(target, pgbench_tables):
    out = pgbench(target, "-n", "-C", "-M", "prepared", "-S", "-c", "8", "-t", "20")
    assert "actually processed: 160/160" in out


@pytest.mark.prepared
def test_pgbench_pipeline_works(target, tmp_path):
    script = tmp_path / "pipeline.sql"
    script.write_text("\\startpipeline\nSELECT 1;\nSELECT 2;\nSELECT 3;\n\\endpipeline\n")
    for protocol in ("extended", "prepared"):
        out = pgbench(target, "-n", "-M", protocol, "-f", str(script), "-c", str(POOL_SIZE * 2), "-t", "50")
        assert f"actually processed: {POOL_SIZE * 2 * 50}/{POOL_SIZE * 2 * 50}" in out


def history(server):
    return server.execute("SELECT count(*) FROM pgbench_history").fetchone()[0]


@pytest.mark.prepared
def test_node_postgres(target):
    node = shutil.which("node") or shutil.which("nodejs")
    assert node, "node is not installed (scripts/test.sh installs it)"
    modules = pathlib.Path(
        os.environ.get("RINGBOUNCER_TEST_NODE_MODULES", ROOT / "target/drivers/node/node_modules")
    )
    assert (modules / "pg").exists(), f"{modules}/pg is missing (scripts/test.sh installs it)"
    environment = throwaway.libpq_free_environment() | {
        "NODE_PATH": str(modules),
        "RINGBOUNCER_TEST_URL": target.url(),
        "RINGBOUNCER_TEST_POOL_SIZE": str(POOL_SIZE),
    }
    done = subprocess.run(
        [node, "--test", HERE / "node_postgres.cjs"], env=environment, capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # node counts a file without tests as a success.
    passed = re.search(r"^# pass (\d+)|ℹ pass (\d+)", done.stdout, re.MULTILINE)
    assert passed and int(passed[1] or passed[2]) >= 10, done.stdout
