"""Questions about videos: a question's tokens read the video, and what they have read is an answer.
Read `cross_attention`, `readouts`, `answers`."""
