"""Writes docs/metrics.md, the list of all metrics, from the families that the programs declare.

python docs/generate_metrics.py            write it
python docs/generate_metrics.py --check    status 1 if it is not what they declare
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from generated import ROOT, main

from fencekv.exposition import Family
from fencekv_operator import metrics as operator
from fencekv_shard import metrics as shard

PAGE: Final = ROOT / "docs/metrics.md"

HEAD: Final = """# Metrics

Made from the code by `python docs/generate_metrics.py`; do not edit. Both programs serve them at `/metrics` in the
text form of Prometheus: a shard on its HTTP port (7070), the operator on its probe port (8080). Times are seconds,
counters begin at 0 with the process. *Series* says by what their number is bounded: nothing that a client sends
becomes a label.

Rules for alerts that need no more than these:
[manifests/monitoring/alerts.yaml](../manifests/monitoring/alerts.yaml).
"""

SHARD: Final = """## A shard

Of a partition, five numbers have series of their own (at 1,000 partitions 5,000 series of a shard): the epoch,
whether it is served, how many copies there are, how far entries go and how far they are committed. What else
replicas tell is summed by role. `last_seq - commit_seq` of an owner is what waits for standbys; `commit_seq` of an
owner less that of a standby is how far that one is behind.
"""

OPERATOR: Final = """## The operator

The operator that leads counts what it did itself; the other ones tell zeros of it. Parts of an owner change
(`fencekv_operator_failover_seconds`) are taken on the operator's clock, as it learns of them:

| phase | from | to |
|---|---|---|
| `noticed` | the last renewal of the session that it heard | the first doubt, or a hint |
| `proven` | that | the proof that the session is over, fenced where that is due |
| `granted` | that; without a session that ended: a grant was wanted | the grant on the partition Lease |
| `serving` | that | the first report of the new owner that it serves (asked for every 0.25 s meanwhile) |
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, SHARD, *_rows(shard.FAMILIES), "", OPERATOR, *_rows(operator.FAMILIES), ""])


def _rows(families: Iterable[Family]) -> Iterator[str]:
    yield "| metric | kind | labels | series | what it is |"
    yield "|---|---|---|---|---|"
    for family in families:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        yield f"| `{family.name}` | {family.kind} | {labels} | {family.series} | {family.text} |"


if __name__ == "__main__":
    raise SystemExit(main(PAGE, page(), source="the declared families", how="make docs"))
