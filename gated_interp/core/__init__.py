"""What every floor may use: errors, frozen configs, seeds and whole-file writes."""
