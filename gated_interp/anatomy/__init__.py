"""What a model is, said once: its tokens, heads, norms, and the way from a head to the logits.

An analysis asks here instead of assuming. What cannot be expressed is refused in one sentence.
"""
