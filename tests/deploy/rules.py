"""What every rendered pod keeps, and what must fit together between objects and config.toml.

A rule takes a Case and yields its complaints. All of RULES hold for all cases; `mutations.py` shows
for each of them a change that it notices.
"""

import re
import tomllib
from dataclasses import dataclass

USER = 65532
# What admin.public_listen serves: docs/configuration.md.
PUBLIC_PATHS = {"/livez", "/readyz", "/metrics"}
TOKEN_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
CONFIG_DIRECTORY = "/etc/tlsward"


@dataclass
class Case:
    """Objects that are applied together, and the config.toml of a ConfigMap that is not among them."""

    name: str
    objects: list
    elsewhere: str | None = None

    def of_kind(self, *kinds):
        return [o for o in self.objects if o["kind"] in kinds]

    def workload(self):
        (found,) = [o for o in self.objects if "template" in o.get("spec", {})]
        return found

    def labels(self):
        return self.workload()["spec"]["template"]["metadata"].get("labels", {})

    def pod(self):
        return self.workload()["spec"]["template"]["spec"]

    def containers(self):
        return self.pod().get("initContainers", []) + self.pod()["containers"]

    def tlsward(self):
        (found,) = [c for c in self.containers() if c["name"] == "tlsward"]
        return found

    def native(self):
        return self.tlsward() in self.pod().get("initContainers", [])

    def volume(self, name):
        (found,) = [v for v in self.pod()["volumes"] if v["name"] == name]
        return found

    def mounts(self, container):
        """(mount, its volume) for each of the container's mounts."""
        return [(m, self.volume(m["name"])) for m in container.get("volumeMounts", [])]

    def config_text(self):
        for mount, volume in self.mounts(self.tlsward()):
            if mount["mountPath"] == CONFIG_DIRECTORY and "configMap" in volume:
                for each in self.of_kind("ConfigMap"):
                    if each["metadata"]["name"] == volume["configMap"]["name"]:
                        return each["data"]["config.toml"]
        return self.elsewhere

    def config(self):
        return tomllib.loads(self.config_text())

    def services(self):
        """name -> (the service's table, its tls table), with what it inherits."""
        config = self.config()
        defaults = config.get("defaults", {})
        return {
            name: ({**defaults, **table}, {**defaults.get("tls", {}), **table.get("tls", {})})
            for name, table in config.get("services", {}).items()
        }

    def objects_read(self):
        """kind -> names of what the configuration lets tlsward read from the API."""
        read = {"secrets": set(), "configmaps": set(), "services": set()}
        for service, tls in self.services().values():
            if "secret" in tls:
                read["secrets"].add(tls["secret"])
            ca = tls.get("ca")
            for each in ca if isinstance(ca, list) else [ca]:
                if isinstance(each, dict):
                    read["secrets"] |= {each["secret"]} if "secret" in each else set()
                    read["configmaps"] |= {each["configmap"]} if "configmap" in each else set()
            if isinstance(service["upstream"], dict):
                read["services"].add(service["upstream"]["service"])
        return read

    def uses_api(self):
        return any(self.objects_read().values()) or "kubernetes" in self.config()

    def caller_ports(self):
        """Ports of the listeners that other pods can reach."""
        return {
            int(service["listen"].rsplit(":", 1)[1])
            for service, _ in self.services().values()
            if not re.match(r"(127\.|\[::1\]|localhost|unix:)", service["listen"])
        }


def seconds(text):
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"([0-9.]+)(ms|s|m|h|d)", text)
    assert "".join(n + u for n, u in parts) == text, f"not a duration: {text}"
    return sum(float(number) * units[unit] for number, unit in parts)


def selects(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    return all(
        each["operator"] == "Exists" and each["key"] in labels
        for each in selector.get("matchExpressions", [])
    )


def the_pod_is_hardened(case):
    pod = case.pod()
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false"
    if pod.get("enableServiceLinks") is not False:
        yield "enableServiceLinks is not false"
    for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.get(key):
            yield f"{key} is set"
    for volume in pod["volumes"]:
        for kind in ("hostPath", "emptyDir"):
            if kind in volume:
                yield f"volume {volume['name']} is of kind {kind}"


def every_container_is_hardened(case):
    pod = case.pod().get("securityContext", {})
    for container in case.containers():
        name, own = container["name"], container.get("securityContext", {})
        for key, wanted in (("allowPrivilegeEscalation", False), ("readOnlyRootFilesystem", True)):
            if own.get(key) is not wanted:
                yield f"{name}: {key} is not {wanted}"
        if own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: capabilities are not drop: [ALL] alone"
        if own.get("privileged"):
            yield f"{name}: privileged"
        # Pod and container may both say it; the nearer one counts.
        both = {**pod, **own}
        if both.get("runAsNonRoot") is not True or both.get("runAsUser", USER) == 0:
            yield f"{name}: may run as root"
        if both.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name}: seccompProfile is not RuntimeDefault"
        for port in container.get("ports", []):
            if "hostPort" in port:
                yield f"{name}: hostPort"
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
            yield f"{name}: no requests for cpu and memory"
        if "memory" not in resources.get("limits", {}):
            yield f"{name}: no memory limit"


def tlsward_is_hardened_wherever_its_container_is_pasted(case):
    own = case.tlsward().get("securityContext", {})
    wanted = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for key, value in wanted.items():
        if own.get(key) != value:
            yield f"the container itself does not say {key}: {value}"


def probes_ask_what_the_configuration_serves(case):
    address = case.config().get("admin", {}).get("public_listen", "off")
    if not re.match(r"(0\.0\.0\.0|\[::\]):\d+$", address):
        yield f"admin.public_listen = {address} is out of a kubelet's reach"
        return
    port = int(address.rsplit(":", 1)[1])
    container = case.tlsward()
    named = {p["name"]: p["containerPort"] for p in container["ports"]}
    probes = {"livenessProbe": "/livez", "readinessProbe": "/readyz"}
    if case.native():
        probes["startupProbe"] = "/readyz"
    for probe, path in probes.items():
        get = container.get(probe, {}).get("httpGet")
        if get is None:
            yield f"no {probe}"
        elif get["path"] != path:
            yield f"{probe} asks for {get['path']}"
        elif named.get(get["port"], get["port"]) != port:
            yield f"{probe} goes to port {get['port']}, public_listen is {address}"
    for monitor in case.of_kind("PodMonitor"):
        if not selects(monitor["spec"]["selector"], case.labels()):
            yield "the PodMonitor does not select the pods"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if named.get(endpoint["port"]) != port or endpoint["path"] not in PUBLIC_PATHS:
                yield "the PodMonitor asks for what public_listen does not serve"


def the_grace_period_lets_connections_end(case):
    config = case.config()
    delay = seconds(config.get("shutdown_delay", "0s"))
    timeout = seconds(config.get("shutdown_timeout", "30s"))
    grace = case.pod().get("terminationGracePeriodSeconds", 30)
    if grace <= delay + timeout:
        yield f"terminationGracePeriodSeconds {grace} <= {delay:g} + {timeout:g}"


def it_outlives_its_callers(case):
    """A native sidecar ends last anyhow. All others need shutdown_delay; a Job's never ends without."""
    if case.native():
        if case.tlsward().get("restartPolicy") != "Always":
            yield "an init container without restartPolicy: Always: the pod would wait for its end"
        return
    if case.workload()["kind"] == "Job":
        yield "an ordinary sidecar in a Job: the Job would never be complete"
    if seconds(case.config().get("shutdown_delay", "0s")) == 0:
        yield "no shutdown_delay"


def the_configuration_is_mounted_so_that_it_can_change(case):
    found = [
        (mount, volume)
        for mount, volume in case.mounts(case.tlsward())
        if mount["mountPath"] == CONFIG_DIRECTORY and "configMap" in volume
    ]
    if not found:
        yield f"no ConfigMap at {CONFIG_DIRECTORY}"
    for container in case.containers():
        for mount, _ in case.mounts(container):
            if "subPath" in mount or "subPathExpr" in mount:
                yield f"{mount['mountPath']}: subPath"
            if mount.get("readOnly") is not True:
                yield f"{mount['mountPath']}: not readOnly"


def secrets_are_mounted_for_tlsward_alone(case):
    secret = {v["name"] for v in case.pod()["volumes"] if "secret" in v or "projected" in v}
    for name in secret:
        volume = case.volume(name)
        source = volume.get("secret", volume.get("projected"))
        if source.get("defaultMode") != 0o440:
            yield f"volume {name}: defaultMode is not 0440"
    if secret and case.pod().get("securityContext", {}).get("fsGroup") != USER:
        yield f"fsGroup is not {USER}: what has mode 0440 could not be read"
    for container in case.containers():
        for mount, volume in case.mounts(container):
            if volume["name"] in secret and container["name"] != "tlsward":
                yield f"{container['name']}: has {volume['name']} too"
    places = [m["mountPath"] for m, v in case.mounts(case.tlsward()) if "secret" in v]
    for service, (_, tls) in case.services().items():
        for key in ("ca", "cert", "key", "bundle"):
            path = tls.get(key)
            if isinstance(path, str) and path != "system":
                if not any(path.startswith(place + "/") for place in places):
                    yield f"services.{service}.tls.{key}: no Secret is mounted at {path}"


def a_token_is_there_where_the_api_is_used_and_nowhere_else(case):
    tokens = [
        source["serviceAccountToken"]
        for mount, volume in case.mounts(case.tlsward())
        if mount["mountPath"] == TOKEN_DIRECTORY
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]
    if bool(tokens) != case.uses_api():
        yield f"the API is {'' if case.uses_api() else 'not '}used, tokens: {len(tokens)}"
    for token in tokens:
        if not 600 <= token.get("expirationSeconds", 3600) <= 3600:
            yield "the token lives longer than an hour"
    for account in case.of_kind("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield "the ServiceAccount mounts its token everywhere"


def it_may_read_what_the_configuration_names_and_nothing_else(case):
    allowed = {"secrets": set(), "configmaps": set(), "services": set(), "endpointslices": set()}
    roles = {r["metadata"]["name"]: r for r in case.of_kind("Role")}
    if case.of_kind("ClusterRole", "ClusterRoleBinding"):
        yield "a ClusterRole"
    for binding in case.of_kind("RoleBinding"):
        account = case.pod().get("serviceAccountName", "default")
        if [s["name"] for s in binding["subjects"]] != [account]:
            yield f"the RoleBinding is not for {account}"
            continue
        for rule in roles[binding["roleRef"]["name"]]["rules"]:
            for resource in rule["resources"]:
                if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"]:
                    yield f"{resource}: a wildcard"
                names = rule.get("resourceNames")
                if resource in ("secrets", "configmaps", "services") and not names:
                    yield f"{resource}: all of them, not those with names"
                if resource in allowed and {"list", "watch"} <= set(rule["verbs"]):
                    allowed[resource] |= set(names or {"*"})
    read = case.objects_read()
    for kind, names in read.items():
        if allowed[kind] != names:
            yield f"{kind}: may read {sorted(allowed[kind])}, config.toml names {sorted(names)}"
    if bool(read["services"]) != bool(allowed["endpointslices"]):
        yield "endpointslices go with services"


def callers_reach_the_listeners_and_only_who_may(case):
    ports = case.caller_ports()
    offered = set()
    named = {p["name"]: p["containerPort"] for p in case.tlsward()["ports"]}
    for service in case.of_kind("Service"):
        if not selects({"matchLabels": service["spec"]["selector"]}, case.labels()):
            yield "the Service does not select the pods"
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield "the Service is to be reached from outside the cluster"
        if case.workload()["kind"] == "DaemonSet":
            if service["spec"].get("internalTrafficPolicy") != "Local":
                yield "internalTrafficPolicy is not Local: what is in the clear would leave the node"
        offered |= {named.get(p["targetPort"], p["targetPort"]) for p in service["spec"]["ports"]}
    if offered != ports:
        yield f"the Service offers {sorted(offered)}, config.toml listens at {sorted(ports)}"
    let_in = {}
    for policy in case.of_kind("NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"], case.labels()):
            yield f"NetworkPolicy {policy['metadata']['name']} does not select the pods"
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from") or not rule.get("ports"):
                yield "a NetworkPolicy lets everybody in"
            for port in rule.get("ports", []):
                let_in[port["port"]] = rule.get("from")
    if case.of_kind("NetworkPolicy") and not ports <= let_in.keys():
        yield f"NetworkPolicies let nobody in at {sorted(ports - let_in.keys())}"


def the_workload_selects_its_pods(case):
    workload = case.workload()
    if workload["kind"] != "Job" and not selects(workload["spec"]["selector"], case.labels()):
        yield "its selector does not select the pods of its template"


def an_update_or_a_drained_node_interrupts_nobody(case):
    workload = case.workload()
    kind, spec = workload["kind"], workload["spec"]
    if kind == "DaemonSet":
        rolling = spec.get("updateStrategy", {}).get("rollingUpdate", {})
        if (rolling.get("maxUnavailable"), rolling.get("maxSurge")) != (0, 1):
            yield "updateStrategy is not maxUnavailable 0, maxSurge 1"
    if kind == "Deployment" and len(case.containers()) == 1:
        rolling = spec.get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0:
            yield "strategy is not maxUnavailable 0"
        spread = {t["topologyKey"] for t in case.pod().get("topologySpreadConstraints", [])}
        if spread != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
            yield "not spread over nodes and zones"
        for each in case.pod().get("topologySpreadConstraints", []):
            if not selects(each["labelSelector"], case.labels()):
                yield "topologySpreadConstraints do not select the pods"
        if spec["replicas"] < 2:
            yield "a single replica"
    for budget in case.of_kind("PodDisruptionBudget"):
        if not selects(budget["spec"]["selector"], case.labels()):
            yield "the PodDisruptionBudget does not select the pods"
        if budget["spec"].get("maxUnavailable") in (0, "0%"):
            yield "the PodDisruptionBudget keeps nodes from being drained"


RULES = [
    the_pod_is_hardened,
    every_container_is_hardened,
    tlsward_is_hardened_wherever_its_container_is_pasted,
    probes_ask_what_the_configuration_serves,
    the_grace_period_lets_connections_end,
    it_outlives_its_callers,
    the_configuration_is_mounted_so_that_it_can_change,
    secrets_are_mounted_for_tlsward_alone,
    a_token_is_there_where_the_api_is_used_and_nowhere_else,
    it_may_read_what_the_configuration_names_and_nothing_else,
    callers_reach_the_listeners_and_only_who_may,
    the_workload_selects_its_pods,
    an_update_or_a_drained_node_interrupts_nobody,
]


def complaints(case):
    return [(rule, text) for rule in RULES for text in rule(case)]
