"""One shard file, and the bytes of files: what a shard is (`format`), how it is written
(`writer`) and read (`reader`), and what the page cache has and has no room for
(`page_cache`)."""
