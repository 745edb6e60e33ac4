#!/usr/bin/env bash
# Moves an installation from md5 to SCRAM-SHA-256, and back.
#
#   scripts/setup_scram_auth.sh             shows what it found, asks, and does it
#   scripts/setup_scram_auth.sh --rollback  puts everything back as it was
#
# What it does: checks PostgreSQL's password_encryption; for every user of auth_file fetches the SCRAM verifier
# that PostgreSQL stores (by the pooler's auth_query, or else from pg_authid), or, where PostgreSQL still has an md5 one, asks for the password and gives PostgreSQL a
# SCRAM verifier; writes auth_file; sets auth_type; reloads; logs in once. If that login fails, all of it is undone.
#
# Settings come from the environment or from ./.env (KEY=VALUE lines); what is missing is asked for:
#   RINGBOUNCER_CONFIG    the pooler's ringbouncer.toml
#   PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE   how to reach PostgreSQL, as a superuser
#   POOLER_HOST POOLER_PORT   where the pooler listens (default 127.0.0.1 6432)
#   POOLER_SOCKET_DIR     the pooler's unix_socket_dir: RELOAD goes through its console there
#   POOLER_PID            else: the pooler's process, which gets SIGHUP
#   TEST_USER TEST_PASSWORD TEST_DATABASE   who logs in at the end
#   USER_PASSWORDS        a file of "user password" lines for users whose md5 secret has to be replaced
set -euo pipefail
umask 077
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'TEXT'
usage: scripts/setup_scram_auth.sh [--env FILE] [--yes] [--rollback]
  --env FILE  settings (default ./.env, if it is there)
  --yes       do not ask before changing anything
  --rollback  undo the last run: auth_file, auth_type and the secrets of PostgreSQL
TEXT
}

say() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

ENV_FILE="" YES=no ROLLBACK=no
while [ $# -gt 0 ]; do
    case $1 in
        --env)
            [ $# -ge 2 ] || die "--env needs a file"
            ENV_FILE=$2
            shift
            ;;
        --yes) YES=yes ;;
        --rollback) ROLLBACK=yes ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && die "unknown argument $1" ;;
    esac
    shift
done

# --- settings ------------------------------------------------------------------------------------------------------

KNOWN=" RINGBOUNCER_CONFIG PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE POOLER_HOST POOLER_PORT POOLER_SOCKET_DIR POOLER_PID \
TEST_USER TEST_PASSWORD TEST_DATABASE USER_PASSWORDS "

# Reads KEY=VALUE lines without running any of them; the environment goes first.
read_settings() {
    local line key value
    while IFS= read -r line || [ -n "$line" ]; do
        [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Z_]+)=(.*)$ ]] || continue
        key=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
        if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
        [[ $KNOWN == *" $key "* ]] || continue
        [ -n "${!key:-}" ] || printf -v "$key" '%s' "$value"
    done <"$1"
}

if [ -n "$ENV_FILE" ]; then
    [ -r "$ENV_FILE" ] || die "cannot read $ENV_FILE"
    read_settings "$ENV_FILE"
elif [ -r .env ]; then
    read_settings .env
fi

# Asks for a setting that is missing; the third argument says that it must not be seen.
need() {
    local name=$1 question=$2 hidden=${3:-} answer=""
    [ -z "${!name:-}" ] || return 0
    [ -t 0 ] || die "$name is not set (see --help)"
    if [ -n "$hidden" ]; then
        read -r -s -p "$question: " answer
        echo
    else
        read -r -p "$question: " answer
    fi
    [ -n "$answer" ] || die "$name is needed"
    printf -v "$name" '%s' "$answer"
}

need RINGBOUNCER_CONFIG "The pooler's configuration file"
[ -r "$RINGBOUNCER_CONFIG" ] || die "cannot read $RINGBOUNCER_CONFIG"
POOLER_HOST=${POOLER_HOST:-127.0.0.1} POOLER_PORT=${POOLER_PORT:-6432}
PGHOST=${PGHOST:-127.0.0.1} PGPORT=${PGPORT:-5432} PGDATABASE=${PGDATABASE:-postgres}
BACKUP=$RINGBOUNCER_CONFIG.before-scram
for program in psql python3; do
    command -v "$program" >/dev/null || die "$program is missing"
done

# --- the configuration file ----------------------------------------------------------------------------------------

# Finds or replaces one string of [ringbouncer]. `get KEY` prints the value; `set KEY VALUE` prints the whole file.
toml() {
    python3 - "$RINGBOUNCER_CONFIG" "$@" <<'PYTHON'
import re
import sys

path, action, key, *value = sys.argv[1:]
lines = open(path, encoding="utf-8").read().splitlines()
table, header, found = "", None, None
for at, line in enumerate(lines):
    if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line):
        table = match[1]
        header = at if table == "ringbouncer" else header
        continue
    name = key if table == "ringbouncer" else f"ringbouncer.{key}" if not table else None
    if name and re.match(rf"\s*{re.escape(name)}\s*=", line):
        found = at
if action == "get":
    match = found is not None and re.match(r"""[^=]*=\s*(?:"([^"\\]*)"|'([^']*)')""", lines[found])
    print((match[1] or match[2] or "") if match else "")
else:
    line = f'{key} = "{value[0]}"'
    if found is not None:
        name = lines[found].split("=", 1)[0].strip()
        lines[found] = f'{name} = "{value[0]}"'
    elif header is not None:
        lines.insert(header + 1, line)
    else:
        lines.insert(0, "ringbouncer." + line)
    print("\n".join(lines))
PYTHON
}

# Puts standard input in the place of a file, at once and with its mode and owner.
replace() {
    local target=$1 fresh
    fresh=$(mktemp "$target.XXXXXX")
    cat >"$fresh"
    if [ -e "$target" ]; then
        chmod --reference="$target" "$fresh"
        chown --reference="$target" "$fresh" 2>/dev/null || true
    fi
    mv -f "$fresh" "$target"
}

# --- PostgreSQL and the pooler -------------------------------------------------------------------------------------

server() { PGPASSWORD=${PGPASSWORD:-} PGHOST=$PGHOST PGPORT=$PGPORT PGUSER=$PGUSER PGDATABASE=$PGDATABASE PGCONNECT_TIMEOUT=10 \
    psql -X -q -w -A -t -v ON_ERROR_STOP=1 "$@"; }

reload() {
    if [ -n "${POOLER_SOCKET_DIR:-}" ]; then
        PGCONNECT_TIMEOUT=10 psql -X -q -w -h "$POOLER_SOCKET_DIR" -p "$POOLER_PORT" -U pgbouncer -d pgbouncer -c RELOAD >/dev/null
    elif [ -n "${POOLER_PID:-}" ]; then
        kill -HUP "$POOLER_PID"
    else
        die "set POOLER_SOCKET_DIR or POOLER_PID, so that the pooler can be told to reload"
    fi
}

logs_in() {
    PGPASSWORD=$TEST_PASSWORD PGCONNECT_TIMEOUT=10 psql -X -q -w -A -t -h "$POOLER_HOST" -p "$POOLER_PORT" \
        -U "$TEST_USER" -d "$TEST_DATABASE" -c 'select 1' >/dev/null
}

# A reload by signal takes effect a little later.
logs_in_soon() {
    local tries
    for tries in 1 2 3 4 5; do
        if logs_in 2>"$BACKUP/login.log"; then return 0; fi
        sleep "0.$tries"
    done
    cat "$BACKUP/login.log" >&2
    return 1
}

# --- the way back --------------------------------------------------------------------------------------------------

roll_back() {
    [ -e "$BACKUP/config" ] || die "nothing to roll back: no $BACKUP"
    if [ -s "$BACKUP/server.sql" ]; then
        say "giving PostgreSQL its old secrets back"
        server -f "$BACKUP/server.sql" >/dev/null || die "PostgreSQL did not take them; $BACKUP is kept"
    fi
    say "restoring $RINGBOUNCER_CONFIG and auth_file"
    replace "$RINGBOUNCER_CONFIG" <"$BACKUP/config"
    replace "$(cat "$BACKUP/auth_file.path")" <"$BACKUP/auth_file"
    reload
    rm -rf "$BACKUP"
    say "everything is as it was"
}

if [ "$ROLLBACK" = yes ]; then
    [ -e "$BACKUP/server.sql" ] && [ -s "$BACKUP/server.sql" ] && need PGUSER "PostgreSQL superuser, or who may run the pooler's auth_query"
    roll_back
    exit 0
fi

# --- what is there -------------------------------------------------------------------------------------------------

need PGUSER "PostgreSQL superuser, or who may run the pooler's auth_query"
need TEST_USER "User to log in as at the end"
need TEST_PASSWORD "Password of $TEST_USER" hidden
need TEST_DATABASE "Database of the pooler to log in to"
[ ! -e "$BACKUP" ] || die "$BACKUP is there: a run before this one was not rolled back; remove it if it is of no use any more"
[ -n "${POOLER_SOCKET_DIR:-}${POOLER_PID:-}" ] || die "set POOLER_SOCKET_DIR or POOLER_PID, so that the pooler can be told to reload"

AUTH_TYPE=$(toml get auth_type)
AUTH_FILE=$(toml get auth_file)
[ -n "$AUTH_FILE" ] || die "no auth_file in $RINGBOUNCER_CONFIG: there is nothing to move"
case $AUTH_FILE in /*) ;; *) AUTH_FILE=$(dirname "$RINGBOUNCER_CONFIG")/$AUTH_FILE ;; esac
[ -r "$AUTH_FILE" ] || die "cannot read $AUTH_FILE"
say "the pooler has auth_type \"${AUTH_TYPE:-(default)}\" and auth_file $AUTH_FILE"

ENCRYPTION=$(server -c 'show password_encryption') || die "cannot ask PostgreSQL at $PGHOST:$PGPORT"
say "PostgreSQL has password_encryption $ENCRYPTION"
if [ "$ENCRYPTION" != scram-sha-256 ]; then
    note "passwords set from now on would be md5 again. Change that first, as a superuser:"
    note "ALTER SYSTEM SET password_encryption = 'scram-sha-256'; SELECT pg_reload_conf();"
    die "password_encryption must be scram-sha-256"
fi

mapfile -t USERS < <(python3 - "$AUTH_FILE" <<'PYTHON'
import re
import sys

for line in open(sys.argv[1], encoding="utf-8"):
    if match := re.match(r'\s*"((?:[^"]|"")+)"\s+"((?:[^"]|"")*)"', line):
        name, secret = (text.replace('""', '"') for text in match.groups())
        kind = "scram" if secret.startswith("SCRAM-SHA-256$") else "other" if secret else "empty"
        print(f"{kind} {name}")
PYTHON
)

literal() { printf "'%s'" "${1//\'/\'\'}"; }
identifier() { printf '"%s"' "${1//\"/\"\"}"; }

# The secret that PostgreSQL stores: by the pooler's auth_query if it has one, which spares PGUSER being a superuser as long as no
# md5 secret has to be replaced.
AUTH_QUERY=$(toml get auth_query)
stored_secret() {
    if [ -n "$AUTH_QUERY" ]; then
        server -F $'\t' -c "prepare secret as ${AUTH_QUERY%;}" -c "execute secret($(literal "$1"))" | cut -f 2
    else
        server -c "select coalesce(rolpassword, '') from pg_authid where rolname = $(literal "$1")"
    fi
}

# The password of a user, from USER_PASSWORDS or by asking.
password_of() {
    local user=$1 password=""
    if [ -n "${USER_PASSWORDS:-}" ]; then
        password=$(USER_NAME=$user awk '{ name = $1; sub(/^[^ \t]+[ \t]/, ""); if (name == ENVIRON["USER_NAME"]) { print; exit } }' "$USER_PASSWORDS")
    elif [ "$user" = "$TEST_USER" ]; then
        password=$TEST_PASSWORD
    fi
    if [ -z "$password" ]; then
        [ -t 0 ] || die "PostgreSQL has no SCRAM secret of $user, and no password is given in USER_PASSWORDS"
        read -r -s -p "Password of $user, whose md5 secret is to be replaced: " password </dev/tty
        echo >&2
    fi
    printf '%s\n' "$password"
}

# --- gathering -----------------------------------------------------------------------------------------------------

mkdir "$BACKUP"
trap '[ -e "$BACKUP/config" ] || rm -rf "$BACKUP"' EXIT
LINES=$BACKUP/new_lines OLD_SECRETS=$BACKUP/server.sql NEW_SECRETS=$BACKUP/new_secrets.sql
touch "$LINES" "$OLD_SECRETS" "$NEW_SECRETS"
for entry in "${USERS[@]+"${USERS[@]}"}"; do
    kind=${entry%% *} user=${entry#* }
    [ "$kind" = other ] || continue
    stored=$(stored_secret "$user")
    case $stored in
        SCRAM-SHA-256\$*)
            note "$user: PostgreSQL's own verifier"
            secret=$stored
            ;;
        md5*)
            note "$user: PostgreSQL has an md5 secret, which a SCRAM verifier is to replace"
            line=$(password_of "$user" | "$HERE/generate_scram_verifiers.py" "$user")
            secret=${line##*\" \"} secret=${secret%\"}
            printf 'ALTER ROLE %s PASSWORD %s;\n' "$(identifier "$user")" "$(literal "$secret")" >>"$NEW_SECRETS"
            printf 'ALTER ROLE %s PASSWORD %s;\n' "$(identifier "$user")" "$(literal "$stored")" >>"$OLD_SECRETS"
            ;;
        *)
            note "$user: PostgreSQL has no secret of this user; the line stays as it is"
            continue
            ;;
    esac
    printf '%s\t%s\n' "$user" "$secret" >>"$LINES"
done

if [ "$YES" = no ]; then
    [ -t 0 ] || die "nobody to ask; --yes goes ahead"
    read -r -p "Change $(wc -l <"$LINES") users, set auth_type to scram-sha-256 and reload? [y/N] " answer
    [[ $answer == [yY]* ]] || die "nothing was changed"
fi

# --- changing ------------------------------------------------------------------------------------------------------

cp -p "$AUTH_FILE" "$BACKUP/auth_file"
printf '%s\n' "$AUTH_FILE" >"$BACKUP/auth_file.path"
cp -p "$RINGBOUNCER_CONFIG" "$BACKUP/config"
undo() {
    trap - ERR
    printf 'error: that failed; undoing it\n' >&2
    roll_back
    exit 1
}
trap undo ERR INT TERM

if [ -s "$NEW_SECRETS" ]; then
    say "giving PostgreSQL SCRAM verifiers"
    server -1 -f "$NEW_SECRETS" >/dev/null
fi
say "writing $AUTH_FILE"
python3 - "$AUTH_FILE" "$LINES" <<'PYTHON' | replace "$AUTH_FILE"
import re
import sys

fresh = dict(line.rstrip("\n").split("\t", 1) for line in open(sys.argv[2], encoding="utf-8"))
for line in open(sys.argv[1], encoding="utf-8"):
    match = re.match(r'\s*"((?:[^"]|"")+)"\s+"', line)
    name = match and match[1].replace('""', '"')
    if name in fresh:
        line = '"{}" "{}"\n'.format(match[1], fresh[name])
    sys.stdout.write(line)
PYTHON
say "setting auth_type"
changed=$(toml set auth_type scram-sha-256)
printf '%s\n' "$changed" | replace "$RINGBOUNCER_CONFIG"
say "reloading"
reload
say "logging in as $TEST_USER"
logs_in_soon
rm -f "$LINES" "$NEW_SECRETS" "$BACKUP/login.log"
trap - ERR
say "done. $BACKUP has what was there before: --rollback brings it back; remove it when all clients are happy"
