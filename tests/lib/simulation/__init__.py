"""A seeded simulation of a whole FenceKV in one thread and in virtual time: loop, network, API server, checks."""
