g#!/bin/bash
set -eu
PIN=sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=
export CACERT_PATH=/etc/tls/ca.pem

ghostunnel client --listen localhost:9001 --target pinned.internal:443 \
    --verify-spki-pin "$PIN" --disable-authentication &
ghostunnel client --listen localhost:9002 --target "$TARGET" --keystore /etc/tls/client.p12 --storepass secret &
ghostunnel server --listen :8443 --target localhost:8080 --keystore /etc/tls/server.pem --allow-all &
wait
