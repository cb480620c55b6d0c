"""Numbers only, from activations: verdicts, ablation, circuits, superposition measures."""
