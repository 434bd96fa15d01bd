"""What built-in kinds fill in, as far as this project uses them.

Invariants:
  * Only defaults that the real server would fill in too; a controller's or kubelet's fields are left alone.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable
from typing import Any, Final

from .core import Core
from .store import Object

SERVICE_NETWORK: Final = ipaddress.ip_network("10.96.0.0/16")


def without_nulls(value: Any) -> Any:
    """A typed server reads null as absent."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def fill_defaults(storage: str, obj: Object, old: Object | None, core: Core) -> None:
    """Fill in what the kind's own defaults say."""
    for field in ("labels", "annotations", "finalizers", "ownerReferences"):
        if field in obj["metadata"] and not obj["metadata"][field]:
            del obj["metadata"][field]
    fill = _DEFAULTS.get(storage)
    if fill is not None:
        fill(obj, old, core)


def _pod_object(obj: Object, old: Object | None, core: Core) -> None:
    spec = obj.setdefault("spec", {})
    _pod(spec)
    _admitted_pod(spec)
    if old is None:
        obj["status"] = {"phase": "Pending", "qosClass": "BestEffort"}


def _deployment(obj: Object, old: Object | None, core: Core) -> None:
    _deployment_spec(obj.setdefault("spec", {}))
    if old is None:
        obj["status"] = {}


def _namespace(obj: Object, old: Object | None, core: Core) -> None:
    obj.setdefault("spec", {})
    if old is None:
        obj["spec"].setdefault("finalizers", ["kubernetes"])
    obj.setdefault("status", {}).setdefault("phase", "Active")
    obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]


def _secret(obj: Object, old: Object | None, core: Core) -> None:
    obj.setdefault("type", "Opaque")
    for name, text in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[name] = base64.b64encode(text.encode()).decode()


def _claim(obj: Object, old: Object | None, core: Core) -> None:
    obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def _network_policy(obj: Object, old: Object | None, core: Core) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("podSelector", {})
    spec.setdefault("policyTypes", ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    for rule in [*(spec.get("ingress") or ()), *(spec.get("egress") or ())]:
        for port in rule.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _budget(obj: Object, old: Object | None, core: Core) -> None:
    status = obj.setdefault("status", {})
    for field in ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"):
        status.setdefault(field, 0)


def _priority_class(obj: Object, old: Object | None, core: Core) -> None:
    obj.setdefault("preemptionPolicy", "PreemptLowerPriority")


def _event(obj: Object, old: Object | None, core: Core) -> None:
    obj.setdefault("source", {})
    for field in ("firstTimestamp", "lastTimestamp", "eventTime"):
        obj.setdefault(field, None)
    obj.setdefault("reportingComponent", "")
    obj.setdefault("reportingInstance", "")


def _binding(obj: Object, old: Object | None, core: Core) -> None:
    for subject in obj.get("subjects") or ():
        if subject.get("kind") in {"User", "Group"}:
            subject.setdefault("apiGroup", "rbac.authorization.k8s.io")


def _lease(obj: Object, old: Object | None, core: Core) -> None:
    obj.setdefault("spec", {})


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


def _stateful_set(obj: Object, old: Object | None, core: Core) -> None:
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
    if old is None:
        obj["status"] = {"replicas": 0, "availableReplicas": 0}


def _deployment_spec(spec: Object) -> None:
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


def _definition(obj: Object, old: Object | None, core: Core) -> None:
    spec = obj.setdefault("spec", {})
    names = spec.setdefault("names", {})
    kind = names.get("kind")
    if kind:
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", kind + "List")
    spec.setdefault("conversion", {}).setdefault("strategy", "None")


_RBAC: Final = "rbac.authorization.k8s.io"
_DEFAULTS: Final[dict[str, Callable[[Object, Object | None, Core], None]]] = {
    "pods": _pod_object,
    "statefulsets.apps": _stateful_set,
    "deployments.apps": _deployment,
    "services": _service,
    "namespaces": _namespace,
    "secrets": _secret,
    "persistentvolumeclaims": _claim,
    "networkpolicies.networking.k8s.io": _network_policy,
    "poddisruptionbudgets.policy": _budget,
    "priorityclasses.scheduling.k8s.io": _priority_class,
    "events": _event,
    "leases.coordination.k8s.io": _lease,
    "customresourcedefinitions.apiextensions.k8s.io": _definition,
    f"rolebindings.{_RBAC}": _binding,
    f"clusterrolebindings.{_RBAC}": _binding,
}
