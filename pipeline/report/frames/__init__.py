"""What a page shows of videos themselves. Read `videos` (answers drawn over them), `token_maps`
(their tokens over time), `words` (what texts have found, and what questions were answered)."""
