"""What a cache holds, before any student is trained."""
