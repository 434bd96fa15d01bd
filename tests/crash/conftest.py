from crash.fixtures import library, scratch

__all__ = ["library", "scratch"]
