"""Vision towers of Hugging Face transformers: their files, their configuration, their weights."""
