#!/bin/sh
# Writes the definitions that RabbitMQ loads when it starts, and starts it.
#
# The topology is in definitions.json beside this file. The users are not, since their
# passwords come from the environment: they are written here, as RabbitMQ stores them,
# salted and hashed (https://www.rabbitmq.com/docs/passwords#computing-password-hash).
# Definitions are loaded at every start, so a password that is changed in .env is
# changed at the broker by the next "docker compose up".
set -eu

here=$(dirname "$0")
definitions=${DEFINITIONS:?the folder that load_definitions names}

# password_hash PASSWORD prints base64(salt + sha256(salt + password)).
password_hash() {
  salt=$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
  digest=$({ raw "$salt" && printf %s "$1"; } | sha256sum | cut -d' ' -f1)
  { raw "$salt" && raw "$digest"; } | base64 | tr -d '\n'
}

# raw HEX writes the bytes that the digits stand for.
raw() {
  printf %s "$1" | fold -w2 | while read -r byte || [ -n "$byte" ]; do
    # shellcheck disable=SC2059 # the format is the byte, as an octal escape
    printf "\\$(printf %03o "0x$byte")"
  done
}

# user NAME PASSWORD TAGS prints a user as definitions have it.
user() {
  case $1 in
  *[!A-Za-z0-9._-]* | '') echo "start.sh: a user's name is letters, digits, '.', '_' and '-'" >&2; return 1 ;;
  esac
  [ -n "$2" ] || { echo "start.sh: the password of $1 is empty" >&2; return 1; }
  printf '{"name":"%s","password_hash":"%s","hashing_algorithm":"rabbit_password_hashing_sha256","tags":"%s"}' \
    "$1" "$(password_hash "$2")" "$3"
}

# may NAME CONFIGURE WRITE READ prints a user's permissions.
may() {
  printf '{"user":"%s","vhost":"/","configure":"%s","write":"%s","read":"%s"}' "$1" "$2" "$3" "$4"
}

# The least that each needs; docs/operations.md says why. Backslashes are doubled for
# JSON.
ephemeral='websocket\\.(connection|instance)\\..*'
admin=$(user "$RABBITMQ_ADMIN_USER" "$RABBITMQ_ADMIN_PASSWORD" administrator)
gateway=$(user "$RABBITMQ_USER" "$RABBITMQ_PASSWORD" '')
backend=$(user "$RABBITMQ_BACKEND_USER" "$RABBITMQ_BACKEND_PASSWORD" '')

mkdir -p "$definitions"
cp "$here/definitions.json" "$definitions/10-topology.json"
cat >"$definitions/20-users.json" <<JSON
{
  "users": [$admin, $gateway, $backend],
  "permissions": [
    $(may "$RABBITMQ_ADMIN_USER" '.*' '.*' '.*'),
    $(may "$RABBITMQ_USER" "^$ephemeral\$" "^(database|$ephemeral)\$" "^(websockets|$ephemeral)\$"),
    $(may "$RABBITMQ_BACKEND_USER" '^(database(\\.primary)?|websockets)$' '^(websockets|database\\.primary)$' '^database(\\.primary)?$')
  ]
}
JSON

exec docker-entrypoint.sh "$@"
