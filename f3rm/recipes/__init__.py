"""Other systems' files, names and calls on top of extract: NSD, VISSL, Image2Representation."""
