"""What training reports and analysis measures, written once, as pure functions of tensors."""
