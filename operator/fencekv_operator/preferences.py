"""What the mover is told of each partition, from the reconciler's cache.

Invariants:
  * Of what is paused, going, or not known, nothing is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, KV_TABLES, PODS
from fencekv_operator.cache import Cache, kvns_of
from fencekv_operator.placing import Grounds, Preference, places, preference
from fencekv_operator.settings import NamespaceSettings, OperatorSettings, TableSettings

Name = tuple[str, str]  # Kubernetes namespace, name


class Preferences:
    """How much each partition is to be owned by its first pod."""

    def __init__(
        self,
        *,
        cache: Cache,
        operator: OperatorSettings,
        nodes: Callable[[], Mapping[str, Mapping[str, str]]],
        away: Callable[[str, str], Collection[str]],
    ) -> None:
        """`nodes` gives labels by the name of the node; `away` the pods to be replaced, by KVNamespace."""
        self._cache, self._operator, self._nodes, self._away = cache, operator, nodes, away
        self._tables: dict[Name, tuple[TableSettings, Grounds] | None] = {}
        self._tick = -1

    def of(self, namespace: str, name: str) -> Preference:
        """How much a partition is to be owned by its first pod."""
        partition = self._cache.get(KV_PARTITIONS, namespace, name)
        if partition is None or "deletionTimestamp" in partition["metadata"]:
            return Preference.NONE
        if self._tick != self._cache.tick:
            self._tick = self._cache.tick
            self._tables.clear()
        key = (namespace, partition["spec"]["table"])
        if key not in self._tables:
            self._tables[key] = self._table(*key)
        found = self._tables[key]
        if found is None or found[0].identity.uid != partition["spec"]["tableUID"]:
            return Preference.NONE
        table, grounds = found
        return preference(partition, table, grounds.of(table.placement.of(int(partition["spec"]["index"]))))

    def _table(self, namespace: str, name: str) -> tuple[TableSettings, Grounds] | None:
        obj = self._cache.get(KV_TABLES, namespace, name)
        space = self._cache.get(KV_NAMESPACES, namespace, kvns_of(obj)) if obj is not None else None
        if obj is None or space is None:
            return None
        kvns = NamespaceSettings.parse(space, self._operator)
        table = TableSettings.parse(obj, kvns)
        if table.paused or table.identity.deleting or kvns.identity.deleting:
            return None
        pods = {pod["metadata"]["name"]: pod for pod in self._cache.of_kvns(PODS, namespace, kvns.name)}
        away = self._away(namespace, kvns.name)
        return table, Grounds(places(kvns.pods, pods, nodes=self._nodes(), away=away))
