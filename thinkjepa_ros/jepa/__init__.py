"""The fast path: encoder, guided predictor and readout. torch only."""
