"""Pretrained encoders, a teacher's or a student's: loading, batching, forward passes, adapters."""
