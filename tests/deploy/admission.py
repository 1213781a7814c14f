"""What a real API server says of the renderings: its own validation, which knows more than schemas,
and the Pod Security Standard `restricted` for the pods. Only where KUBEBUILDER_ASSETS names a directory
with kube-apiserver and etcd, as for envtest.
"""

import contextlib
import json
import pathlib
import secrets
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request

NAMESPACE = "shop"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def process(*command, log):
    with open(log, "w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(timeout=30)


@contextlib.contextmanager
def api_server(assets):
    """Its URL and an administrator's token, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        etcd, peer, port = free_port(), free_port(), free_port()
        token = secrets.token_hex()
        (directory / "tokens").write_text(f'{token},admin,admin,"system:masters"\n')
        key = directory / "key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        with (
            process(
                assets / "etcd",
                f"--data-dir={directory / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{etcd}",
                f"--advertise-client-urls=http://127.0.0.1:{etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                "--unsafe-no-fsync",
                log=directory / "etcd.log",
            ),
            process(
                assets / "kube-apiserver",
                f"--etcd-servers=http://127.0.0.1:{etcd}",
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                f"--cert-dir={directory / 'certificates'}",
                f"--token-auth-file={directory / 'tokens'}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--service-account-issuer=https://kubernetes.test",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                # Pods may name ServiceAccounts and PriorityClasses that nobody has made.
                "--disable-admission-plugins=ServiceAccount,Priority",
                log=directory / "api.log",
            ) as server,
        ):
            url = f"https://127.0.0.1:{port}"
            until = time.monotonic() + 60
            while not answers(f"{url}/readyz", token):
                if server.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"kube-apiserver:\n{(directory / 'api.log').read_text()[-2000:]}")
                time.sleep(0.1)
            yield url, token


def answers(url, token):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    # Its certificate is its own, made a second ago in a directory of ours.
    context = ssl._create_unverified_context()
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(request, timeout=5, context=context).status == 200
    return False


def refusals(cases, assets, kubectl):
    """What the server refuses of the cases, or warns of."""
    with api_server(assets) as (url, token):

        def ask(objects, *command):
            return subprocess.run(
                [kubectl, f"--server={url}", f"--token={token}", "--insecure-skip-tls-verify"]
                + [f"--namespace={NAMESPACE}", *command, "-f", "-"],
                input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
                capture_output=True,
                text=True,
                timeout=60,
            )

        enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": NAMESPACE, "labels": enforce}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        made = ask([namespace], "create")
        assert made.returncode == 0, made.stderr
        for case in cases:
            template = case.workload()["spec"]["template"]
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "of-the-template", "labels": case.labels()},
                "spec": template["spec"],
            }
            # Known with its CRD only.
            known = [o for o in case.objects if o["kind"] != "PodMonitor"]
            said = ask(known + [pod], "create", "--dry-run=server", "--validate=strict")
            if said.returncode != 0 or said.stderr:
                yield f"{case.name}: {said.stderr.strip()}"
