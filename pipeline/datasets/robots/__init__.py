"""Folders of LeRobot: which episodes there are, the columns of their tables, and their videos. Read
`episodes`, `tables`, `cut`."""
