"""Comparing a set of generated images with a set of real ones: FID, KID, IS, precision, recall, CMMD."""
