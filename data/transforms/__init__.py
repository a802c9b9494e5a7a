"""Pixel operations on batches of images, each with parameters per sample: for augmentation and randomisation alike."""
