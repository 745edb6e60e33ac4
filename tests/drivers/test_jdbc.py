"""pgjdbc, if RINGBOUNCER_TEST_JDBC_JAR says where it is (scripts/test.sh jdbc)."""

import os
import pathlib
import subprocess

import pytest

JAR = os.environ.get("RINGBOUNCER_TEST_JDBC_JAR")

pytestmark = [pytest.mark.prepared, pytest.mark.skipif(not JAR, reason="needs a JDK: scripts/test.sh jdbc")]


def test_pgjdbc(target, table):
    url = f"jdbc:postgresql://127.0.0.1:{target.port}/{target.database}?user={target.user}&connectTimeout=10&socketTimeout=40"
    program = pathlib.Path(__file__).resolve().parent / "Jdbc.java"
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", JAR, program, url, table]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0 and "passed 7" in done.stdout, done.stdout + done.stderr
