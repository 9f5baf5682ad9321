"""Pretrained backbones: how each family is loaded and where its attention is cut out."""
