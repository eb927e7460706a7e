"""From windows of a waveform to decisions, whatever computes the probabilities. Needs no torch."""
