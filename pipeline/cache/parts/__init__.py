"""A cache of a manifest in parts: a cache for each part, under one roof. Read `parted` (what lies
where), `summary` (how far all of it is), then `chosen` (some of its videos as one cache)."""
