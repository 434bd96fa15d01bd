"""`fencekv dev`: a whole FenceKV on this machine, with a failover shown."""
