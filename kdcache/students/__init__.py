"""Students: a frozen backbone, its prompts and its head; never sees a teacher, only the cache."""
