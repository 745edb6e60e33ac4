"""pgx, if RINGBOUNCER_TEST_PGX says where its program is (scripts/test.sh pgx)."""

import os
import subprocess

import pytest

PROGRAM = os.environ.get("RINGBOUNCER_TEST_PGX")

pytestmark = [pytest.mark.prepared, pytest.mark.skipif(not PROGRAM, reason="needs Go: scripts/test.sh pgx")]


def test_pgx(target, table):
    command = [PROGRAM, target.url("postgres", sslmode="disable"), table]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    # PostgreSQL itself refuses a remembered statement whose result has changed.
    expected = "passed 23" if target.name == "postgres" else "passed 24"
    assert expected in done.stdout, done.stdout + done.stderr
