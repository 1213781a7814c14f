#!/bin/sh
# One tunnel with a client certificate.
exec ghostunnel client \
    --listen localhost:7001 \
    --target billing.internal:8443 \
    --cacert /etc/tls/ca.pem \
    --cert /etc/tls/client.crt \
    --key /etc/tls/client.key \
    --override-server-name billing.internal
