"""Data sets of questions about videos: one clip for each question.

In: files of questions with their answers, as they were released. Out: clips with their texts and,
where questions are open, a label: the answer, if training knows it.

Read `questions` (what any file says), then `asked_dataset`, which finds the videos and makes clips,
`open_dataset`, which makes answers into labels, and `qa_json`, a layout that two data sets share.
"""
