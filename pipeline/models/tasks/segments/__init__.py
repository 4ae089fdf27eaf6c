"""What happens when in a video: readouts that answer for every frame, the two families of scores by
which such answers are compared, and a picture of them. Read `readouts`, `segments`, `precision`,
`timeline`."""
