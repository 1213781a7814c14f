#!/bin/sh
export KONG_DATABASE=off
export KONG_PG_PASSWORD=secret
export KONG_CLIENT_SSL=on
export KONG_CLIENT_SSL_CERT=/etc/tls/client.crt
export KONG_CLIENT_SSL_CERT_KEY=/etc/tls/client.key
export KONG_LUA_SSL_TRUSTED_CERTIFICATE=system,/etc/tls/ca.pem
export KONG_LUA_SSL_VERIFY_DEPTH=2
export PATH=/usr/local/bin:$PATH
kong start
