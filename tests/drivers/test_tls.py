"""Encrypted connections as drivers make them: every sslmode, TLS at once, channel binding, large results."""

import dataclasses
import shutil
import ssl
import subprocess
import threading

import asyncpg
import psycopg
import pytest

import conftest
import throwaway

pytestmark = pytest.mark.skipif(
    conftest.TARGET != "ringbouncer" or shutil.which("openssl") is None, reason="needs Ringbouncer and openssl"
)
USER, PASSWORD = "tls_user", "sesame"


@dataclasses.dataclass(frozen=True)
class Certificates:
    ca: str
    certificate: str
    key: str


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a certificate of it for this machine."""
    home = tmp_path_factory.mktemp("certificates")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=home, check=True, capture_output=True, timeout=60)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-subj", "/CN=authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt")
    openssl("req", *key, "-subj", "/CN=localhost", "-keyout", "tls.key", "-out", "tls.csr")
    (home / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "tls.csr", *sign, "-out", "tls.crt")
    return Certificates(str(home / "ca.crt"), str(home / "tls.crt"), str(home / "tls.key"))


@pytest.fixture(scope="module")
def encrypted(target, certificates):
    """A pooler of its own that insists on encryption and on SCRAM."""
    with conftest.server_connection(target) as connection:
        connection.execute("SET password_encryption = 'scram-sha-256'")
        connection.execute(f"CREATE ROLE {USER} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    extra = f'client_tls_sslmode = "require"\nclient_tls_cert_file = "{certificates.certificate}"\n'
    extra += f'client_tls_key_file = "{certificates.key}"\n'
    config = throwaway.ringbouncer_config(target.server_port, [conftest.DATABASE], conftest.POOL_SIZE, 500, extra)
    config = config.replace('auth_type = "trust"', 'auth_type = "scram-sha-256"')
    config += f'\n[users.{USER}]\npassword = "{PASSWORD}"\n'
    with throwaway.work_dir("drivers-tls") as directory:
        pooler = throwaway.start_ringbouncer(directory, config, conftest.SHARDS)
        with throwaway.stopping(pooler):
            yield dataclasses.replace(target, port=pooler.port, user=USER)
            print(throwaway.tail(pooler.log))
            assert pooler.alive()


def connect(encrypted, **parameters):
    return psycopg.connect(**encrypted.libpq(host="localhost", hostaddr="127.0.0.1", password=PASSWORD, **parameters))


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
def test_psycopg_comes_in_by_every_mode_but_disable(encrypted, certificates, mode):
    root = {"sslrootcert": certificates.ca} if mode.startswith("verify") else {}
    with connect(encrypted, sslmode=mode, **root) as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("SELECT 42").fetchone() == (42,)


def test_psycopg_without_encryption_is_told(encrypted):
    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        connect(encrypted, sslmode="disable")


def test_psycopg_notices_a_wrong_name(encrypted, certificates):
    words = {"sslmode": "verify-full", "sslrootcert": certificates.ca}
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        psycopg.connect(**encrypted.libpq(host="elsewhere.example", hostaddr="127.0.0.1", password=PASSWORD, **words))


def test_psycopg_binds_its_login_to_the_channel(encrypted):
    with connect(encrypted, sslmode="require", channel_binding="require") as connection:
        assert connection.execute("SELECT current_user").fetchone() == (USER,)


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="libpq before 17 asks first")
def test_psycopg_encrypts_at_once(encrypted):
    with connect(encrypted, sslmode="require", sslnegotiation="direct") as connection:
        assert connection.execute("SELECT 'direct'").fetchone() == ("direct",)


def test_psycopg_copies_both_ways(encrypted, table):
    rows = [(number, "x" * (number % 3000)) for number in range(3000)]
    with connect(encrypted, sslmode="require") as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        assert cursor.execute(f"SELECT * FROM {table} ORDER BY id").fetchall() == rows


def test_psycopg_cancels(encrypted):
    with connect(encrypted, sslmode="require") as connection:
        connection.execute("SET statement_timeout = 0")
        timer = threading.Timer(0.5, connection.cancel)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(20)")


def test_asyncpg_encrypts(encrypted, certificates, run):
    async def body():
        context = ssl.create_default_context(cafile=certificates.ca)
        words = encrypted.asyncpg(host="localhost", password=PASSWORD, ssl=context)
        connection = await asyncpg.connect(**words)
        try:
            assert await connection.fetchval("SELECT repeat('y', 100000)") == "y" * 100_000
        finally:
            await connection.close()

    run(body())
