"""The sandbox: an embedded Kubernetes API server and a pod runner, for development and tests."""
