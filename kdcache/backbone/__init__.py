"""The student backbone: cutting a pretrained encoder, healing the cut, and probing what it keeps."""
