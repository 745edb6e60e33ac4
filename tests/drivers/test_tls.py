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
MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


@dataclasses.dataclass(frozen=True)
class Certificates:
    ca: str
    certificate: str
    key: str

    def own(self):
        """For a client that shows this certificate."""
        return {"sslcert": self.certificate, "sslkey": self.key}


def make_certificates(home):
    """An authority, and a certificate of it for this machine."""

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=home, check=True, capture_output=True, timeout=60)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-subj", "/CN=authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt")
    openssl("req", *key, "-subj", "/CN=localhost", "-keyout", "tls.key", "-out", "tls.csr")
    (home / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "tls.csr", *sign, "-out", "tls.crt")
    (home / "tls.key").chmod(0o600)
    return Certificates(str(home / "ca.crt"), str(home / "tls.crt"), str(home / "tls.key"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Those of an authority that the pooler does not know."""
    return make_certificates(tmp_path_factory.mktemp("strangers"))


def tls_settings(mode, certificates):
    words = {
        "sslmode": mode,
        "cert_file": certificates.certificate,
        "key_file": certificates.key,
        "ca_file": certificates.ca,
    }
    return "".join(f'client_tls_{name} = "{word}"\n' for name, word in words.items())


@pytest.fixture(scope="module", params=MODES)
def in_mode(request, target, certificates):
    """A pooler for each client_tls_sslmode, and that mode."""
    extra = tls_settings(request.param, certificates)
    config = throwaway.ringbouncer_config(target.server_port, [conftest.DATABASE], conftest.POOL_SIZE, 500, extra)
    with throwaway.work_dir("drivers-tls-modes") as directory:
        pooler = throwaway.start_ringbouncer(directory, config, conftest.SHARDS)
        with throwaway.stopping(pooler):
            yield dataclasses.replace(target, port=pooler.port), request.param


@pytest.fixture(scope="module")
def encrypted(target, certificates):
    """A pooler of its own that insists on encryption and on SCRAM."""
    with conftest.server_connection(target) as connection:
        connection.execute("SET password_encryption = 'scram-sha-256'")
        connection.execute(f"CREATE ROLE {USER} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    extra = tls_settings("require", certificates)
    config = throwaway.ringbouncer_config(target.server_port, [conftest.DATABASE], conftest.POOL_SIZE, 500, extra)
    config = config.replace('auth_type = "trust"', 'auth_type = "scram-sha-256"')
    config += f'\n[users.{USER}]\npassword = "{PASSWORD}"\n'
    with throwaway.work_dir("drivers-tls") as directory:
        pooler = throwaway.start_ringbouncer(directory, config, conftest.SHARDS)
        with throwaway.stopping(pooler):
            yield dataclasses.replace(target, port=pooler.port, user=USER)
            print(throwaway.tail(pooler.log))
            assert pooler.alive()


@pytest.mark.parametrize("mode", MODES)
def test_psycopg_and_pooler_in_every_mode(in_mode, certificates, mode):
    pooler, ours = in_mode
    root = {"sslrootcert": certificates.ca} if mode.startswith("verify") else {}
    words = pooler.libpq(host="localhost", hostaddr="127.0.0.1", sslmode=mode, **root, **certificates.own())
    # libpq's "allow" begins without, its "prefer" with encryption; both try the other when they are refused.
    is_refused = {"disable": mode in MODES[3:], "allow": False, "prefer": False}.get(ours, mode == "disable")
    is_encrypted = ours != "disable" and (mode in MODES[2:] or mode == "allow" and ours in MODES[3:])
    if is_refused:
        with pytest.raises(psycopg.OperationalError, match="SSL"):
            psycopg.connect(**words)
        return
    with psycopg.connect(**words) as connection:
        assert connection.pgconn.ssl_in_use == is_encrypted
        assert connection.execute("SELECT 42").fetchone() == (42,)


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_psycopg_refuses_a_pooler_of_another_authority(in_mode, strangers, mode):
    pooler, ours = in_mode
    complaint = "does not support SSL" if ours == "disable" else "certificate verify failed"
    with pytest.raises(psycopg.OperationalError, match=complaint):
        words = {"sslmode": mode, "sslrootcert": strangers.ca}
        psycopg.connect(**pooler.libpq(host="localhost", hostaddr="127.0.0.1", **words))


@pytest.mark.parametrize("shows", ["nothing", "a stranger's certificate"])
def test_pooler_asks_psycopg_for_a_certificate_where_it_verifies(in_mode, certificates, strangers, shows):
    pooler, ours = in_mode
    own = {} if shows == "nothing" else strangers.own()
    words = pooler.libpq(host="localhost", hostaddr="127.0.0.1", sslmode="prefer", **own)
    # A certificate that is shown must be good, also where none has to be.
    is_refused = ours.startswith("verify") or ours != "disable" and shows != "nothing"
    if is_refused:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(**words)
        return
    with psycopg.connect(**words) as connection:
        assert connection.pgconn.ssl_in_use == (ours != "disable")


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
