"""Which heads, MLPs and edges between them a behaviour needs, exactly or by gradients."""
