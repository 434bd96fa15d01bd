from world import make

__all__ = ["make"]
