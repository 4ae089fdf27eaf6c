"""Vision towers of Hugging Face transformers: types, files, configuration, pixels, weights."""
