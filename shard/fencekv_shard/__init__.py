"""The shard: a process that serves fenced partitions on LMDB."""
