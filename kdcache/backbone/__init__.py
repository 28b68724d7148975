"""The student backbone: cutting a pretrained encoder, and probing what it keeps."""
