"""One module per DVC stage: files in, files out. Nothing else knows the layout on disk."""
