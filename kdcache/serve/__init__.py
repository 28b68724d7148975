"""Trained students that label text: single texts, mixed batches, files, pipes and prepared splits."""
