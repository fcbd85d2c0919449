"""Reading and writing clips and images. Frames are (F, H, W, 3) uint8 RGB arrays everywhere."""
