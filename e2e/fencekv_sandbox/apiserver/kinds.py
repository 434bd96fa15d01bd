"""What built-in kinds fill in and refuse, as far as this project uses them.

Invariants:
  * Only defaults that the real server would fill in too; a controller's or kubelet's fields are left alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from .core import Core
from .errors import (
    Cause,
    field_forbidden,
    field_invalid,
    field_not_supported,
    field_required,
)
from .store import Object

INT32_MAX: Final = 2**31 - 1
SERVICE_NETWORK: Final = ipaddress.ip_network("10.96.0.0/16")
TYPED_EMPTY: Final = ({}, [], None)


def without_nulls(value: Any) -> Any:
    """A typed server reads null as absent."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


# Defaults


def fill_defaults(storage: str, obj: Object, old: Object | None, core: Core) -> None:
    """Fill in what the kind's own defaults say."""
    for field in ("labels", "annotations", "finalizers", "ownerReferences"):
        if field in obj["metadata"] and not obj["metadata"][field]:
            del obj["metadata"][field]
    match storage:
        case "pods":
            _pod(obj.setdefault("spec", {}))
            _admitted_pod(obj["spec"])
            if old is None:
                obj["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
        case "statefulsets.apps":
            _stateful_set(obj, fresh=old is None)
        case "deployments.apps":
            _deployment(obj.setdefault("spec", {}))
            if old is None:
                obj["status"] = {}
        case "services":
            _service(obj, old, core)
        case "namespaces":
            obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
            obj.setdefault("status", {}).setdefault("phase", "Active")
            labels = obj["metadata"].setdefault("labels", {})
            labels["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
        case "secrets":
            obj.setdefault("type", "Opaque")
            _secret_text(obj)
        case "persistentvolumeclaims":
            obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
            obj.setdefault("status", {}).setdefault("phase", "Pending")
        case "networkpolicies.networking.k8s.io":
            spec = obj.setdefault("spec", {})
            spec.setdefault("podSelector", {})
            spec.setdefault("policyTypes", ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
            _policy_ports(spec)
        case "poddisruptionbudgets.policy":
            counts = ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods")
            status = obj.setdefault("status", {})
            for field in counts:
                status.setdefault(field, 0)
        case "priorityclasses.scheduling.k8s.io":
            obj.setdefault("preemptionPolicy", "PreemptLowerPriority")
        case "events":
            obj.setdefault("source", {})
            for field in ("firstTimestamp", "lastTimestamp"):
                obj.setdefault(field, None)
            obj.setdefault("eventTime", None)
            obj.setdefault("reportingComponent", "")
            obj.setdefault("reportingInstance", "")
        case "customresourcedefinitions.apiextensions.k8s.io":
            _definition(obj.setdefault("spec", {}))
        case "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io":
            for subject in obj.get("subjects") or ():
                if subject.get("kind") in {"User", "Group"}:
                    subject.setdefault("apiGroup", "rbac.authorization.k8s.io")
        case "leases.coordination.k8s.io":
            obj.setdefault("spec", {})
        case _:
            pass


def _secret_text(obj: Object) -> None:
    import base64  # noqa: PLC0415  (secrets are rare here)

    for name, text in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[name] = base64.b64encode(text.encode()).decode()


def _policy_ports(spec: Object) -> None:
    for rule in [*(spec.get("ingress") or ()), *(spec.get("egress") or ())]:
        for port in rule.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _probe(probe: Object) -> None:
    for name, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        probe.setdefault(name, value)
    if "httpGet" in probe:
        probe["httpGet"].setdefault("scheme", "HTTP")
        probe["httpGet"].setdefault("path", "/")


def _pull_policy(image: str) -> str:
    last = image.rsplit("/", 1)[-1]
    tag = last.split("@", 1)[0].partition(":")[2]
    return "Always" if "@" not in last and tag in {"", "latest"} else "IfNotPresent"


def _container(container: Object) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("imagePullPolicy", _pull_policy(container.get("image") or ""))
    container.setdefault("resources", {})
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            _probe(container[name])
    for variable in container.get("env") or ():
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")


def _pod(spec: Object) -> None:
    for name, value in (
        ("restartPolicy", "Always"),
        ("terminationGracePeriodSeconds", 30),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
    ):
        spec.setdefault(name, value)
    spec.setdefault("securityContext", {})
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        _container(container)
    for volume in spec.get("volumes") or ():
        for source, mode in (("configMap", 420), ("secret", 420), ("projected", 420), ("downwardAPI", 420)):
            if source in volume:
                volume[source].setdefault("defaultMode", mode)


_TOLERATED: Final = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def _admitted_pod(spec: Object) -> None:
    """What a pod itself gets, and its template does not."""
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    tolerations = spec.setdefault("tolerations", [])
    for key in _TOLERATED:
        if all(one.get("key") not in {key, None} for one in tolerations):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})


def _template(spec: Object) -> None:
    template = spec.setdefault("template", {})
    template.setdefault("metadata", {})
    _pod(template.setdefault("spec", {}))


def _stateful_set(obj: Object, *, fresh: bool) -> None:
    spec = obj.setdefault("spec", {})
    for name, value in (
        ("podManagementPolicy", "OrderedReady"),
        ("replicas", 1),
        ("revisionHistoryLimit", 10),
        ("serviceName", ""),
    ):
        spec.setdefault(name, value)
    retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
    retention.setdefault("whenDeleted", "Retain")
    retention.setdefault("whenScaled", "Retain")
    update = spec.setdefault("updateStrategy", {})
    if update.setdefault("type", "RollingUpdate") == "RollingUpdate":
        update.setdefault("rollingUpdate", {}).setdefault("partition", 0)
    _template(spec)
    for claim in spec.get("volumeClaimTemplates") or ():
        claim.setdefault("apiVersion", "v1")
        claim.setdefault("kind", "PersistentVolumeClaim")
        claim.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
        claim.setdefault("status", {}).setdefault("phase", "Pending")
    if fresh:
        obj["status"] = {"replicas": 0, "availableReplicas": 0}


def _deployment(spec: Object) -> None:
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    _template(spec)


def _service(obj: Object, old: Object | None, core: Core) -> None:
    spec = obj.setdefault("spec", {})
    was = (old or {}).get("spec") or {}
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    spec.setdefault("internalTrafficPolicy", "Cluster")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    if spec["type"] != "ExternalName":
        if not spec.get("clusterIP"):
            spec["clusterIP"] = was.get("clusterIP") or _free_address(core)
        spec["clusterIPs"] = [spec["clusterIP"]]
        spec.setdefault("ipFamilies", was.get("ipFamilies") or ["IPv4"])
        spec.setdefault("ipFamilyPolicy", was.get("ipFamilyPolicy") or "SingleStack")
    if old is None:
        obj["status"] = {"loadBalancer": {}}


def _free_address(core: Core) -> str:
    taken = {(one.object.get("spec") or {}).get("clusterIP") for one in core.store.list("services")}
    for host in SERVICE_NETWORK.hosts():
        if str(host) not in taken and not str(host).endswith(".0.1"):
            return str(host)
    raise AssertionError("the service network is full")


def _definition(spec: Object) -> None:
    names = spec.setdefault("names", {})
    kind = names.get("kind")
    if kind:
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", kind + "List")
    spec.setdefault("conversion", {}).setdefault("strategy", "None")


# Validation


def causes_of(storage: str, obj: Object, old: Object | None, subresource: str | None) -> Iterator[Cause]:
    """What the kind refuses."""
    check = _CHECKS.get(storage)
    if check is not None:
        yield from check(obj, old)


def _not_negative(spec: Object, field: str, path: str) -> Iterator[Cause]:
    value = spec.get(field)
    if value is not None and value < 0:
        yield field_invalid(path, value, "must be greater than or equal to 0")


def _lease(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    duration = spec.get("leaseDurationSeconds")
    if duration is not None and duration <= 0:
        yield field_invalid("spec.leaseDurationSeconds", duration, "must be greater than 0")
    yield from _not_negative(spec, "leaseTransitions", "spec.leaseTransitions")


def _containers(spec: Object, path: str) -> Iterator[Cause]:
    containers = spec.get("containers") or ()
    if not containers:
        yield field_required(f"{path}.containers")
    for index, one in enumerate(containers):
        where = f"{path}.containers[{index}]"
        if not one.get("name"):
            yield field_required(f"{where}.name")
        if not one.get("image"):
            yield field_required(f"{where}.image")
    policy = spec.get("restartPolicy")
    if policy not in {"Always", "OnFailure", "Never"}:
        yield field_not_supported(f"{path}.restartPolicy", policy, ["Always", "OnFailure", "Never"])


def _pod_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    yield from _containers(obj.get("spec") or {}, "spec")


def _selects(spec: Object) -> bool:
    selector = (spec.get("selector") or {}).get("matchLabels") or {}
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    return all(labels.get(name) == value for name, value in selector.items())


_STATEFUL_SET_MUTABLE: Final = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def _workload(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not spec.get("selector"):
        yield field_required("spec.selector")
    elif not _selects(spec):
        labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        text = "`selector` does not match template `labels`"
        yield field_invalid("spec.template.metadata.labels", labels, text)
    yield from _not_negative(spec, "replicas", "spec.replicas")
    yield from _containers((spec.get("template") or {}).get("spec") or {}, "spec.template.spec")


def _stateful_set_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    yield from _workload(obj, old)
    if old is None:
        return
    fixed = [
        {name: value for name, value in (one.get("spec") or {}).items() if name not in _STATEFUL_SET_MUTABLE}
        for one in (obj, old)
    ]
    if fixed[0] != fixed[1]:
        names = ", ".join(f"'{name}'" for name in _STATEFUL_SET_MUTABLE[:-1])
        text = (
            f"updates to statefulset spec for fields other than {names} and '{_STATEFUL_SET_MUTABLE[-1]}' "
            "are forbidden"
        )
        yield field_forbidden("spec", text)


def _service_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    kinds_of = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]
    if spec.get("type") not in kinds_of:
        yield field_not_supported("spec.type", spec.get("type"), kinds_of)
    if not spec.get("ports") and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        yield field_required("spec.ports")
    for index, port in enumerate(spec.get("ports") or ()):
        if not 1 <= port.get("port", 0) <= 65535:
            text = "must be between 1 and 65535, inclusive"
            yield field_invalid(f"spec.ports[{index}].port", port.get("port", 0), text)
    if old is not None:
        was = (old.get("spec") or {}).get("clusterIP")
        if was and spec.get("clusterIP") != was and spec.get("type") != "ExternalName":
            yield field_invalid("spec.clusterIPs[0]", [spec.get("clusterIP")], "may not change once set")


def _budget_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        text = "minAvailable and maxUnavailable cannot be both set"
        yield field_invalid("spec", spec, text)
    for field in ("minAvailable", "maxUnavailable"):
        value = spec.get(field)
        if isinstance(value, int) and value < 0:
            yield field_invalid(f"spec.{field}", value, "must be greater than or equal to 0")


_CONFIG_KEY: Final = re.compile(r"^[-._a-zA-Z0-9]+\Z")


def _config_map_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    for field in ("data", "binaryData"):
        for key in obj.get(field) or ():
            if not _CONFIG_KEY.match(key):
                text = (
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. "
                    "'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
                    "'[-._a-zA-Z0-9]+')"
                )
                yield field_invalid(f"{field}[{key}]", key, text)
    if old is not None and old.get("immutable"):
        for field in ("data", "binaryData"):
            if obj.get(field) != old.get(field):
                yield field_forbidden(field, "field is immutable when `immutable` is set")


def _event_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    about = obj.get("involvedObject") or {}
    namespace = obj["metadata"].get("namespace")
    if (about.get("namespace") or "default") != namespace:
        text = "does not match event.namespace"
        yield field_invalid("involvedObject.namespace", about.get("namespace", ""), text)


_CHECKS: Final[dict[str, Callable[[Object, Object | None], Iterator[Cause]]]] = {
    "leases.coordination.k8s.io": _lease,
    "pods": _pod_causes,
    "statefulsets.apps": _stateful_set_causes,
    "deployments.apps": _workload,
    "services": _service_causes,
    "poddisruptionbudgets.policy": _budget_causes,
    "configmaps": _config_map_causes,
    "events": _event_causes,
}
