"""The command line: `fencekv` for data, `kubectl-fencekv` for the cluster's view."""
