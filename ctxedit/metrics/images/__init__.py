"""How good a set of generated images is, beside a set of real ones: FID, KID, IS, precision, recall, CMMD."""
