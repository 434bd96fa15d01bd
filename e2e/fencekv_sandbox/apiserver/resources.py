"""Which resources are served: a table of the built-in ones, and those that CustomResourceDefinitions add.

Invariants:
  * A resource is found under exactly one (group, version, plural); all versions share one `storage`.
  * Built-in resources cannot be replaced or removed by a CustomResourceDefinition.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

Object = dict[str, Any]

VERBS_ALL: Final = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
VERBS_SUB: Final = ("get", "patch", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePaths:
    """Where a resource keeps what its `scale` subresource shows."""

    replicas: str = ".spec.replicas"
    replicas_seen: str = ".status.replicas"
    selector: str | None = None  # None: the resource has no selector to show.


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """What a served version of a CustomResourceDefinition says beyond its names."""

    definition: str
    schema: Object
    columns: tuple[Object, ...]
    preserve_unknown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One served resource in one version."""

    group: str
    version: str
    plural: str
    singular: str
    kind: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = VERBS_ALL
    status: bool = False
    scale: ScalePaths | None = None
    generation: bool = False  # Whether spec changes are counted in metadata.generation.
    update_needs_version: bool = False
    update_creates: bool = False
    fields: frozenset[str] = frozenset()  # Selectable beside metadata.name and metadata.namespace.
    list_kind: str = ""
    custom: Custom | None = None
    stored_as: str = ""  # Another resource's storage that this one shows in its own words.
    more_subresources: tuple[str, ...] = field(default=())

    @property
    def api_version(self) -> str:
        """`v1`, `coordination.k8s.io/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage(self) -> str:
        """Name of the shelf in the store."""
        return self.stored_as or (f"{self.plural}.{self.group}" if self.group else self.plural)

    @property
    def kind_of_list(self) -> str:
        """`LeaseList`."""
        return self.list_kind or self.kind + "List"

    @property
    def selectable(self) -> frozenset[str]:
        """Every field that a field selector may name."""
        names = {"metadata.name"} | ({"metadata.namespace"} if self.namespaced else set())
        return self.fields | names

    @property
    def subresources(self) -> tuple[str, ...]:
        """Names of the served subresources."""
        own = (("scale",) if self.scale else ()) + (("status",) if self.status else ())
        return own + self.more_subresources


_SELECTOR: Final = ".status.selector"
_EVENT_FIELDS: Final = frozenset(
    {
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    }
)
_POD_FIELDS: Final = frozenset(
    {
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    }
)


def _builtin(group: str, version: str, plural: str, kind: str, short: str = "", **more: Any) -> Resource:
    more.setdefault("namespaced", True)
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        singular=more.pop("singular", kind.lower()),
        short_names=tuple(short.split()),
        **more,
    )


_ALL: Final = ("all",)
_RBAC: Final = "rbac.authorization.k8s.io"
_ADMISSION: Final = "admissionregistration.k8s.io"
_EXTENSIONS: Final = "apiextensions.k8s.io"

BUILTIN: Final[tuple[Resource, ...]] = (
    _builtin("", "v1", "configmaps", "ConfigMap", "cm"),
    _builtin("", "v1", "endpoints", "Endpoints", "ep", singular="endpoints", update_creates=True),
    _builtin("", "v1", "events", "Event", "ev", update_creates=True, fields=_EVENT_FIELDS),
    _builtin(
        "",
        "v1",
        "namespaces",
        "Namespace",
        "ns",
        namespaced=False,
        status=True,
        fields=frozenset({"status.phase"}),
        verbs=tuple(verb for verb in VERBS_ALL if verb != "deletecollection"),
        more_subresources=("finalize",),
    ),
    _builtin(
        "",
        "v1",
        "nodes",
        "Node",
        "no",
        namespaced=False,
        status=True,
        fields=frozenset({"spec.unschedulable"}),
    ),
    _builtin("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc", status=True),
    _builtin("", "v1", "persistentvolumes", "PersistentVolume", "pv", namespaced=False, status=True),
    _builtin(
        "",
        "v1",
        "pods",
        "Pod",
        "po",
        status=True,
        generation=True,
        fields=_POD_FIELDS,
        categories=_ALL,
        more_subresources=("binding", "eviction", "log"),
    ),
    _builtin("", "v1", "secrets", "Secret", fields=frozenset({"type"})),
    _builtin("", "v1", "serviceaccounts", "ServiceAccount", "sa", more_subresources=("token",)),
    _builtin(
        "",
        "v1",
        "services",
        "Service",
        "svc",
        status=True,
        update_creates=True,
        categories=_ALL,
        fields=frozenset({"spec.clusterIP", "spec.type"}),
    ),
    _builtin(
        "apps",
        "v1",
        "deployments",
        "Deployment",
        "deploy",
        status=True,
        scale=ScalePaths(selector=_SELECTOR),
        generation=True,
        categories=_ALL,
    ),
    _builtin(
        "apps",
        "v1",
        "statefulsets",
        "StatefulSet",
        "sts",
        status=True,
        scale=ScalePaths(selector=_SELECTOR),
        generation=True,
        categories=_ALL,
    ),
    _builtin("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", status=True, generation=True),
    _builtin("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "netpol", generation=True),
    _builtin("coordination.k8s.io", "v1", "leases", "Lease", update_needs_version=True, update_creates=True),
    _builtin(
        "events.k8s.io",
        "v1",
        "events",
        "Event",
        "ev",
        update_creates=True,
        stored_as="events",
        fields=frozenset({"reason", "type", "regarding.kind", "regarding.name", "regarding.uid"}),
    ),
    _builtin("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", generation=True),
    _builtin(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False, update_creates=True),
    _builtin(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False, update_creates=True),
    _builtin(_RBAC, "v1", "rolebindings", "RoleBinding", update_creates=True),
    _builtin(_RBAC, "v1", "roles", "Role", update_creates=True),
    _builtin(
        "scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "pc", namespaced=False, generation=True
    ),
    _builtin("storage.k8s.io", "v1", "storageclasses", "StorageClass", "sc", namespaced=False),
    _builtin(
        _ADMISSION,
        "v1",
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        namespaced=False,
        status=True,
        generation=True,
        categories=("api-extensions",),
    ),
    _builtin(
        _ADMISSION,
        "v1",
        "validatingadmissionpolicybindings",
        "ValidatingAdmissionPolicyBinding",
        namespaced=False,
        generation=True,
        categories=("api-extensions",),
    ),
    _builtin(
        _EXTENSIONS,
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd crds",
        namespaced=False,
        status=True,
        generation=True,
        categories=("api-extensions",),
    ),
    _builtin(
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        namespaced=False,
        verbs=("create",),
    ),
    _builtin(
        "authentication.k8s.io",
        "v1",
        "selfsubjectreviews",
        "SelfSubjectReview",
        namespaced=False,
        verbs=("create",),
    ),
)

DEFINITIONS: Final = f"customresourcedefinitions.{_EXTENSIONS}"


class Registry:
    """Every served resource."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, str], Resource] = {
            (resource.group, resource.version, resource.plural): resource for resource in BUILTIN
        }
        self._custom: dict[str, tuple[Resource, ...]] = {}
        self.generation = 0  # Changes whenever what is served changes.

    def serves(self, group: str, version: str) -> bool:
        """Whether anything built in is served in this group and version."""
        return any(
            (one.group, one.version) == (group, version) and one.custom is None for one in self._served.values()
        )

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource, or None if it is not served."""
        return self._served.get((group, version, plural))

    def all(self) -> list[Resource]:
        """Every resource, in a stable order."""
        return [self._served[key] for key in sorted(self._served)]

    def groups(self) -> dict[str, list[str]]:
        """Versions by group; the core group is the empty one."""
        groups: dict[str, list[str]] = {}
        for group, version, _ in sorted(self._served):
            versions = groups.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return groups

    def of_storage(self, storage: str) -> Resource | None:
        """The resource whose own shelf this is."""
        return next((one for one in self.all() if one.storage == storage and not one.stored_as), None)

    def by_kind(self, group: str, kind: str) -> Resource | None:
        """The resource of a kind, in any version."""
        return next((one for one in self.all() if one.group == group and one.kind == kind), None)

    def define(self, name: str, definition: Object | None) -> None:
        """Serve what a CustomResourceDefinition says; None: it is gone."""
        for resource in self._custom.pop(name, ()):
            del self._served[(resource.group, resource.version, resource.plural)]
        resources = () if definition is None else custom_resources(definition)
        for resource in resources:
            key = (resource.group, resource.version, resource.plural)
            assert key not in self._served, key
            self._served[key] = resource
        if resources:
            self._custom[name] = resources
        self.generation += 1


def custom_resources(definition: Object) -> tuple[Resource, ...]:
    """The served versions of a CustomResourceDefinition that was accepted."""
    spec = definition["spec"]
    names = spec["names"]
    resources = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
        subresources = version.get("subresources") or {}
        scale = subresources.get("scale")
        selectable = version.get("selectableFields") or ()
        resources.append(
            Resource(
                group=spec["group"],
                version=version["name"],
                plural=names["plural"],
                singular=names.get("singular") or names["kind"].lower(),
                kind=names["kind"],
                list_kind=names.get("listKind") or names["kind"] + "List",
                namespaced=spec["scope"] == "Namespaced",
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                status="status" in subresources,
                scale=None if scale is None else _scale_paths(scale),
                generation=True,
                update_needs_version=True,
                fields=frozenset(one["jsonPath"].lstrip(".") for one in selectable),
                custom=Custom(
                    definition=definition["metadata"]["name"],
                    schema=schema,
                    columns=tuple(version.get("additionalPrinterColumns") or ()),
                    preserve_unknown=bool(spec.get("preserveUnknownFields")),
                ),
            )
        )
    return tuple(resources)


def _scale_paths(scale: Object) -> ScalePaths:
    return ScalePaths(
        replicas=scale["specReplicasPath"],
        replicas_seen=scale["statusReplicasPath"],
        selector=scale.get("labelSelectorPath"),
    )
