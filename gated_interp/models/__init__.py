"""Models: the toy transformer, the gated attention block, splicing one into the other, files."""
