"""Sources of images with labels, captions, masks or questions."""
