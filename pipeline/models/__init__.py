"""Every network: frozen encoders and text towers, layer mixers, temporal modules, readouts.

In: frames (encoders), texts (text towers) or recorded tokens (all else); nothing here knows of
caches or files of videos. Out: tokens, embeddings, and a task's predictions, over whole windows or
frame by frame.

Read `video_model` (mixer, projection, temporal module, readouts), `mixers`, then the contracts of
`encoders/`, `text/`, `temporal/` and `tasks/`, whose files are plug-ins. `ahead` lets one model
read what another forecasts; `profile` counts parameters and operations and times a step.
"""
