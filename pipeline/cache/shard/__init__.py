"""One shard file, and the bytes of files: what a shard is (`format`), how it is written (`writer`)
and read (`reader`), what the page cache has (`page_cache`), and how it is passed by (`direct`)."""
