"""Puts a second beside etcd, and idle memory. `python -m bench --help`."""
