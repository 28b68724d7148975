"""Analysis of a cache before any student is trained."""
