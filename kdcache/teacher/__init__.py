"""The teacher: its training, its folder, and the cache that is made from it."""
