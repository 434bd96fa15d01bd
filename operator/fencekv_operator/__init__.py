"""The operator: makes partitions, places replicas, hands out epochs."""
