from apiservers import access, apiserver, real_plane

__all__ = ["access", "apiserver", "real_plane"]
