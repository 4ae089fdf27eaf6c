"""Questions about videos: a question's tokens read the video, and what they have read is an answer.
Read `attention`, `readouts`, `answers`."""
