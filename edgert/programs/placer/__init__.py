"""The placer process: training jobs of others run here, and this device's own find places elsewhere."""
