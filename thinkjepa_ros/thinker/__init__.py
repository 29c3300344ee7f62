"""The slow path: Qwen3-VL as a source of guidance. transformers only."""
