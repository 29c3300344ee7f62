"""What a forecast is worth: metrics, baselines, intervals, pictures."""
