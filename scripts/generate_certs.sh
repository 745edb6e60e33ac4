#!/usr/bin/env bash
# Makes a certificate authority and server certificates for PostgreSQL and for Ringbouncer.
#
#   scripts/generate_certs.sh                          into ./certs, for localhost and this machine's name
#   scripts/generate_certs.sh db.example.net 10.0.0.5  further names and addresses that clients dial
#
#   certs/ca/ca.crt               the authority: clients verify with it (sslrootcert, *_tls_ca_file)
#   certs/postgresql.crt          PostgreSQL's certificate (ssl_cert_file)
#   certs/pgbouncer.crt           the pooler's certificate
#   certs/pgbouncer-combined.pem  the pooler's key, certificate and authority in one file
#   certs/private/                the keys: ca.key, postgresql.key, pgbouncer.key
#
# Keys can be read by their owner alone. Nothing is overwritten without --force.
set -euo pipefail
umask 077

usage() {
    cat <<'TEXT'
usage: scripts/generate_certs.sh [--force] [--out DIR] [--days N] [--ca-days N] [NAME|ADDRESS]...
  --force      replace certificates and keys that are there already
  --out DIR    where to (default ./certs)
  --days N     how long the server certificates are valid (default 365, at most 825)
  --ca-days N  how long the authority is valid (default 3650)
TEXT
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

FORCE=no OUT=certs DAYS=365 CA_DAYS=3650 NAMES=()
while [ $# -gt 0 ]; do
    case $1 in
        --force) FORCE=yes ;;
        --out | --days | --ca-days)
            [ $# -ge 2 ] || die "$1 needs a value"
            case $1 in
                --out) OUT=$2 ;;
                --days) DAYS=$2 ;;
                *) CA_DAYS=$2 ;;
            esac
            shift
            ;;
        -h | --help) usage && exit 0 ;;
        -*) usage >&2 && die "unknown option $1" ;;
        *) NAMES+=("$1") ;;
    esac
    shift
done
[[ $DAYS =~ ^[1-9][0-9]{0,2}$ && $DAYS -le 825 ]] || die "--days must be 1 to 825"
[[ $CA_DAYS =~ ^[1-9][0-9]{0,4}$ && $CA_DAYS -ge $DAYS ]] || die "--ca-days must be a number, not below --days"
command -v openssl >/dev/null || die "openssl is missing"

FILES=(ca/ca.crt postgresql.crt pgbouncer.crt pgbouncer-combined.pem private/ca.key private/postgresql.key private/pgbouncer.key)
for file in "${FILES[@]}"; do
    if [ -e "$OUT/$file" ] && [ "$FORCE" = no ]; then
        die "$OUT/$file is there already; --force replaces the authority and every certificate"
    fi
done

is_address() { [[ $1 =~ ^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$ || $1 == *:* ]]; }

# The names and addresses as a subjectAltName, each once.
alternative_names() {
    local name seen="," list=""
    for name in localhost "$(uname -n)" 127.0.0.1 ::1 "${NAMES[@]+"${NAMES[@]}"}"; do
        [[ $name =~ ^[A-Za-z0-9.:*_-]+$ ]] || die "not a host name or address: $name"
        [[ $seen == *",$name,"* ]] && continue
        seen="$seen$name,"
        if is_address "$name"; then list="$list,IP:$name"; else list="$list,DNS:$name"; fi
    done
    printf '%s\n' "${list#,}"
}
SAN=$(alternative_names)

# Everything is made beside its place and moved there at the end: a failure leaves what was there.
mkdir -p "$OUT"
WORK=$(mktemp -d "$OUT/.new.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$WORK/ca" "$WORK/private"

new_key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

make_authority() {
    new_key "$WORK/private/ca.key"
    openssl req -x509 -new -sha256 -key "$WORK/private/ca.key" -days "$CA_DAYS" -out "$WORK/ca/ca.crt" \
        -subj "/CN=Ringbouncer certificate authority" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"
}

# A certificate signed by the authority. A common name has at most 64 characters, so it is the program's.
make_certificate() {
    local name=$1
    new_key "$WORK/private/$name.key"
    openssl req -new -sha256 -key "$WORK/private/$name.key" -subj "/CN=$name" -out "$WORK/$name.csr"
    cat >"$WORK/$name.ext" <<TEXT
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = $SAN
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
TEXT
    openssl x509 -req -sha256 -in "$WORK/$name.csr" -CA "$WORK/ca/ca.crt" -CAkey "$WORK/private/ca.key" \
        -set_serial "0x$(openssl rand -hex 16 | sed 's/^./1/')" -days "$DAYS" -extfile "$WORK/$name.ext" \
        -out "$WORK/$name.crt" 2>"$WORK/log" || { cat "$WORK/log" >&2 && die "cannot sign the certificate of $name"; }
}

make_authority
make_certificate postgresql
make_certificate pgbouncer
cat "$WORK/private/pgbouncer.key" "$WORK/pgbouncer.crt" "$WORK/ca/ca.crt" >"$WORK/pgbouncer-combined.pem"
openssl verify -CAfile "$WORK/ca/ca.crt" "$WORK/postgresql.crt" "$WORK/pgbouncer.crt" >/dev/null ||
    die "the new certificates do not verify"

mkdir -p "$OUT/ca" "$OUT/private"
chmod 755 "$OUT" "$OUT/ca"
chmod 700 "$OUT/private"
chmod 644 "$WORK/ca/ca.crt" "$WORK/postgresql.crt" "$WORK/pgbouncer.crt"
chmod 600 "$WORK/pgbouncer-combined.pem" "$WORK"/private/*.key
for file in "${FILES[@]}"; do mv -f "$WORK/$file" "$OUT/$file"; done

cat <<TEXT
Certificates for $SAN are in $OUT, valid for $DAYS days.
PostgreSQL:   ssl = on, ssl_cert_file = '$OUT/postgresql.crt', ssl_key_file = '$OUT/private/postgresql.key'
Clients:      sslmode=verify-full sslrootcert=$OUT/ca/ca.crt
Keep $OUT/private/ca.key off the servers: whoever has it can make certificates that all clients trust.
TEXT
