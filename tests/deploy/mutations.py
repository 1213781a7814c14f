"""For each rule a change to good manifests that it must notice, so that none holds because it looks at nothing."""

import copy

import rules


def config(old, new):
    def change(case):
        text = case.config_text()
        assert old in text, old
        for each in case.of_kind("ConfigMap"):
            each["data"]["config.toml"] = text.replace(old, new)

    return change


def drop(where, key):
    return lambda case: where(case).pop(key)


def put(where, key, value):
    return lambda case: where(case).__setitem__(key, value)


def first(kind):
    return lambda case: case.of_kind(kind)[0]


def tlsward(case):
    return case.tlsward()


def security(case):
    return case.tlsward()["securityContext"]


def application(case):
    (found,) = [c for c in case.containers() if c["name"] != "tlsward"]
    return found


def probe(name):
    return lambda case: case.tlsward()[name]["httpGet"]


def source(case):
    return case.volume("kubernetes-api")["projected"]


def secret_rule(case):
    return case.of_kind("Role")[0]["rules"][0]


def ordinary(case):
    pod = case.pod()
    pod["containers"] += pod.pop("initContainers")


# (case, rule, change)
MUTATIONS = [
    ("native-sidecar", rules.the_pod_is_hardened, put(rules.Case.pod, "automountServiceAccountToken", True)),
    ("native-sidecar", rules.the_pod_is_hardened, drop(rules.Case.pod, "enableServiceLinks")),
    ("daemonset", rules.the_pod_is_hardened, put(rules.Case.pod, "hostNetwork", True)),
    ("daemonset", rules.the_pod_is_hardened, lambda c: c.pod()["volumes"].append({"name": "s", "hostPath": {}})),
    ("deployment", rules.the_pod_is_hardened, lambda c: c.pod()["volumes"].append({"name": "s", "emptyDir": {}})),
    ("deployment", rules.every_container_is_hardened, drop(security, "readOnlyRootFilesystem")),
    ("job", rules.every_container_is_hardened, drop(lambda c: application(c)["securityContext"], "readOnlyRootFilesystem")),
    ("daemonset", rules.every_container_is_hardened, drop(security, "allowPrivilegeEscalation")),
    ("daemonset", rules.every_container_is_hardened, put(security, "capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]})),
    ("daemonset", rules.every_container_is_hardened, put(security, "privileged", True)),
    ("job", rules.every_container_is_hardened, drop(lambda c: c.pod()["securityContext"], "runAsNonRoot")),
    ("job", rules.every_container_is_hardened, drop(lambda c: c.pod()["securityContext"], "seccompProfile")),
    ("daemonset", rules.every_container_is_hardened, put(lambda c: tlsward(c)["ports"][0], "hostPort", 9902)),
    ("plain-sidecar", rules.every_container_is_hardened, drop(lambda c: tlsward(c)["resources"], "limits")),
    ("plain-sidecar", rules.every_container_is_hardened, drop(lambda c: tlsward(c)["resources"]["requests"], "cpu")),
    ("native-sidecar", rules.tlsward_is_hardened_wherever_its_container_is_pasted, drop(security, "runAsNonRoot")),
    ("native-sidecar", rules.tlsward_is_hardened_wherever_its_container_is_pasted, put(security, "runAsUser", 1000)),
    ("native-sidecar", rules.tlsward_is_hardened_wherever_its_container_is_pasted, drop(security, "seccompProfile")),
    ("native-sidecar", rules.probes_ask_what_the_configuration_serves, drop(tlsward, "startupProbe")),
    ("plain-sidecar", rules.probes_ask_what_the_configuration_serves, put(probe("livenessProbe"), "path", "/health")),
    ("plain-sidecar", rules.probes_ask_what_the_configuration_serves, put(probe("readinessProbe"), "port", 9901)),
    ("plain-sidecar", rules.probes_ask_what_the_configuration_serves, config("0.0.0.0:9902", "0.0.0.0:9903")),
    ("plain-sidecar", rules.probes_ask_what_the_configuration_serves, config("0.0.0.0:9902", "127.0.0.1:9902")),
    ("podmonitor", rules.probes_ask_what_the_configuration_serves, put(lambda c: first("PodMonitor")(c)["spec"]["podMetricsEndpoints"][0], "path", "/status")),
    ("podmonitor", rules.probes_ask_what_the_configuration_serves, put(lambda c: first("PodMonitor")(c)["spec"], "selector", {"matchLabels": {"a": "b"}})),
    ("native-sidecar", rules.the_grace_period_lets_connections_end, put(rules.Case.pod, "terminationGracePeriodSeconds", 10)),
    ("plain-sidecar", rules.the_grace_period_lets_connections_end, config('shutdown_delay = "30s"', 'shutdown_delay = "1m"')),
    ("deployment", rules.the_grace_period_lets_connections_end, config('shutdown_timeout = "30s"', 'shutdown_timeout = "40s"')),
    ("plain-sidecar", rules.it_outlives_its_callers, config('shutdown_delay = "30s"', "")),
    ("deployment", rules.it_outlives_its_callers, config('shutdown_delay = "5s"', "")),
    ("native-sidecar", rules.it_outlives_its_callers, drop(tlsward, "restartPolicy")),
    ("job", rules.it_outlives_its_callers, ordinary),
    ("native-sidecar", rules.the_configuration_is_mounted_so_that_it_can_change, put(lambda c: tlsward(c)["volumeMounts"][0], "subPath", "config.toml")),
    ("native-sidecar", rules.the_configuration_is_mounted_so_that_it_can_change, drop(lambda c: tlsward(c)["volumeMounts"][0], "readOnly")),
    ("plain-sidecar", rules.secrets_are_mounted_for_tlsward_alone, put(lambda c: c.volume("billing-client")["secret"], "defaultMode", 0o644)),
    ("native-sidecar", rules.secrets_are_mounted_for_tlsward_alone, drop(source, "defaultMode")),
    ("plain-sidecar", rules.secrets_are_mounted_for_tlsward_alone, drop(lambda c: c.pod()["securityContext"], "fsGroup")),
    ("plain-sidecar", rules.secrets_are_mounted_for_tlsward_alone, put(application, "volumeMounts", [{"name": "billing-client", "mountPath": "/x", "readOnly": True}])),
    ("plain-sidecar", rules.secrets_are_mounted_for_tlsward_alone, config("/secrets/billing-client/ca.crt", "/etc/ca.crt")),
    ("native-sidecar", rules.a_token_is_there_where_the_api_is_used_and_nowhere_else, lambda c: source(c)["sources"].pop(0)),
    ("native-sidecar", rules.a_token_is_there_where_the_api_is_used_and_nowhere_else, put(lambda c: source(c)["sources"][0]["serviceAccountToken"], "expirationSeconds", 86400)),
    ("native-sidecar", rules.a_token_is_there_where_the_api_is_used_and_nowhere_else, drop(first("ServiceAccount"), "automountServiceAccountToken")),
    ("native-sidecar", rules.it_may_read_what_the_configuration_names_and_nothing_else, drop(secret_rule, "resourceNames")),
    ("native-sidecar", rules.it_may_read_what_the_configuration_names_and_nothing_else, put(secret_rule, "resourceNames", ["billing-client", "other"])),
    ("native-sidecar", rules.it_may_read_what_the_configuration_names_and_nothing_else, put(secret_rule, "verbs", ["get"])),
    ("native-sidecar", rules.it_may_read_what_the_configuration_names_and_nothing_else, put(secret_rule, "verbs", ["*", "list", "watch"])),
    ("native-sidecar", rules.it_may_read_what_the_configuration_names_and_nothing_else, put(lambda c: first("RoleBinding")(c)["subjects"][0], "name", "default")),
    ("native-sidecar", rules.it_may_read_what_the_configuration_names_and_nothing_else, config('service = "billing"', 'service = "ledger"')),
    ("deployment", rules.callers_reach_the_listeners_and_only_who_may, config("0.0.0.0:7001", "0.0.0.0:7002")),
    ("deployment", rules.callers_reach_the_listeners_and_only_who_may, put(lambda c: first("Service")(c)["spec"], "type", "LoadBalancer")),
    ("daemonset", rules.callers_reach_the_listeners_and_only_who_may, drop(lambda c: first("Service")(c)["spec"], "internalTrafficPolicy")),
    ("deployment", rules.callers_reach_the_listeners_and_only_who_may, put(lambda c: first("Service")(c)["spec"], "selector", {"a": "b"})),
    ("deployment", rules.callers_reach_the_listeners_and_only_who_may, drop(lambda c: first("NetworkPolicy")(c)["spec"]["ingress"][0], "from")),
    ("deployment", rules.callers_reach_the_listeners_and_only_who_may, lambda c: [p["spec"].update(ingress=[]) for p in c.of_kind("NetworkPolicy")]),
    ("daemonset", rules.the_workload_selects_its_pods, put(rules.Case.labels, "tlsward/mode", "other")),
    ("daemonset", rules.an_update_or_a_drained_node_interrupts_nobody, drop(lambda c: c.workload()["spec"], "updateStrategy")),
    ("deployment", rules.an_update_or_a_drained_node_interrupts_nobody, drop(lambda c: c.workload()["spec"], "strategy")),
    ("deployment", rules.an_update_or_a_drained_node_interrupts_nobody, put(lambda c: c.workload()["spec"], "replicas", 1)),
    ("deployment", rules.an_update_or_a_drained_node_interrupts_nobody, drop(rules.Case.pod, "topologySpreadConstraints")),
    ("deployment", rules.an_update_or_a_drained_node_interrupts_nobody, put(lambda c: first("PodDisruptionBudget")(c)["spec"], "maxUnavailable", 0)),
]


def unnoticed(cases):
    """What of MUTATIONS went by its rule, and rules that no mutation is about."""
    by_name = {case.name: case for case in cases}
    for index, (name, rule, change) in enumerate(MUTATIONS):
        case = copy.deepcopy(by_name[name])
        change(case)
        if not list(rule(case)):
            yield f"mutation {index} of {name} goes unnoticed by {rule.__name__}"
    for rule in rules.RULES:
        if rule not in {rule for _, rule, _ in MUTATIONS}:
            yield f"{rule.__name__}: no mutation shows that it notices anything"
