"""An upstream that asks for a client certificate, and answers each line with the name in it.

`upstream.py PORT`: with /pki's server.crt, server.key and ca.crt. "hello" from a client whose
certificate says CN=orders is answered by "orders hello".
"""

import asyncio
import ssl
import sys


async def serve(reader, writer):
    subject = writer.get_extra_info("peercert")["subject"]
    name = dict(pair for part in subject for pair in part)["commonName"]
    try:
        while line := await reader.readline():
            writer.write(name.encode() + b" " + line)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except (OSError, ssl.SSLError):
        pass  # the client is gone


async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="/pki/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain("/pki/server.crt", "/pki/server.key")
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), ssl=context, backlog=512)
    async with server:
        await server.serve_forever()


asyncio.run(main())
