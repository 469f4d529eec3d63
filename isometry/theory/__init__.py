"""Mean-field theory and free probability: what the spectrum should be. Never imports torch."""
