"""A cache that is there is compared with specs and with other caches (`diff`), with its videos
(`spot_check`), and mended (`repair`)."""
