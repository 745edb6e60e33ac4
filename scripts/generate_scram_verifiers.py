#!/usr/bin/env python3
"""Prints userlist.txt lines with SCRAM-SHA-256 verifiers, as PostgreSQL stores them.

    scripts/generate_scram_verifiers.py alice >> userlist.txt            asks for the password
    scripts/generate_scram_verifiers.py alice --password-file alice.pw   takes the first line of a file
    scripts/generate_scram_verifiers.py alice 'the password'             visible to whoever can list processes

The password itself is not in the line. To let Ringbouncer log in to PostgreSQL with what clients prove
(SCRAM pass-through), both must have the very same verifier: take PostgreSQL's from pg_authid.rolpassword, or
give this one to PostgreSQL with ALTER ROLE .. PASSWORD. `ringbouncer scram-verifier` does the same.
"""

import argparse
import base64
import getpass
import hashlib
import hmac
import os
import stringprep
import sys
import unicodedata

SALT_BYTES = 16
USER_NAME_BYTES_MAX = 127
ITERATIONS_MAX = 10_000_000

PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
    stringprep.in_table_a1,
)


def saslprep(password: str) -> str:
    """RFC 4013. Like PostgreSQL, a password that it forbids is taken as it is."""
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c)
    )
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not normal or any(table(c) for c in normal for table in PROHIBITED):
        return password
    if any(map(stringprep.in_table_d1, normal)):
        ends = stringprep.in_table_d1(normal[0]) and stringprep.in_table_d1(normal[-1])
        if not ends or any(map(stringprep.in_table_d2, normal)):
            return password
    return normal


def verifier(password: str, salt: bytes, iterations: int) -> str:
    """RFC 5802 section 3, in the form of pg_authid.rolpassword."""
    secret = saslprep(password).encode()
    salted = hashlib.pbkdf2_hmac("sha256", secret, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored, server = (base64.b64encode(b).decode() for b in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${iterations}:{salt_text}${stored}:{server}"


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def first_line(file) -> str:
    return file.readline().rstrip("\r\n")


def read_password(user: str, arguments) -> str:
    if arguments.password is not None:
        return arguments.password
    if arguments.password_file is not None:
        with open(arguments.password_file, encoding="utf-8") as file:
            return first_line(file)
    if not sys.stdin.isatty():
        return first_line(sys.stdin)
    password = getpass.getpass(f"Password for {user}: ")
    if getpass.getpass("Again: ") != password:
        sys.exit("error: the two passwords are not the same")
    return password


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("user", metavar="USER")
    parser.add_argument("password", metavar="PASSWORD", nargs="?")
    parser.add_argument("--password-file", metavar="FILE", help="take the first line of FILE")
    parser.add_argument("--iterations", type=int, default=4096, metavar="N", help="default 4096")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    user = arguments.user
    if not 0 < len(user.encode()) <= USER_NAME_BYTES_MAX or any(c in user for c in "\r\n\0"):
        sys.exit(f"error: user name must have 1 to {USER_NAME_BYTES_MAX} bytes and no line end")
    if not 1 <= arguments.iterations <= ITERATIONS_MAX:
        sys.exit(f"error: iterations must be 1 to {ITERATIONS_MAX}")
    try:
        password = read_password(user, arguments)
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: cannot read the password: {error}")
    if not password or "\0" in password:
        sys.exit("error: password must not be empty")
    secret = verifier(password, os.urandom(SALT_BYTES), arguments.iterations)
    print(quoted(user), quoted(secret))


if __name__ == "__main__":
    main()
