"""The cue-reach scene (MuJoCo)."""
