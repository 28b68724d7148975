"""The teacher: fine-tuning, its folder, and the cache that is made of it."""
