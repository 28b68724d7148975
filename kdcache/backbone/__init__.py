"""The frozen encoder that students share: cutting, healing, probing."""
