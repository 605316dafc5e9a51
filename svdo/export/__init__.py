"""What becomes of a trained network: made smaller, saved, loaded, exported."""
