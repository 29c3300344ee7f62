"""The cue-reach benchmark: fixed origins, every row on the same ones, intervals over episodes."""
