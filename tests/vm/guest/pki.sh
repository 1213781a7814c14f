#!/bin/sh
# Certificates of the tests, in /pki. `pki.sh ca`; then `pki.sh server NAME…` (one certificate for all
# the names) and `pki.sh client FILE NAME` (FILE.crt and FILE.key with CN=NAME).
set -eu
mkdir -p /pki
cd /pki

key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt; }

# FILE SUBJECT EXTENSIONS
issue() {
    (umask 077 && key >"$1.key")
    openssl req -new -key "$1.key" -subj "/CN=$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -days 30 -extfile "$3" -out "$1.crt" 2>/dev/null
}

case $1 in
ca)
    key >ca.key
    openssl req -x509 -new -key ca.key -subj "/CN=Test CA" -days 30 -out ca.crt \
        -addext "keyUsage=critical,keyCertSign,cRLSign"
    ;;
server)
    shift
    names=$(printf 'DNS:%s,' "$@")
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "${names%,}" >extensions
    issue server "$1" extensions
    ;;
client)
    printf 'extendedKeyUsage=clientAuth\n' >extensions
    issue "$2" "$3" extensions
    ;;
esac
