"""What a person types and sees: `stillframe` is `main:entry`, and every file but three holds the
commands of one story.

In: arguments. Out: tables and sentences on stdout, talk and progress on stderr, exit codes 0 to 3.

Read `main` (how a command begins and ends) and `options` (what commands share), then the command
that you are after: `start`, `manifests/`, `cache`, `verify`, `plan`, `train`, `sweep`, `share/`,
`about/`. `console` and `show` print, `talk/` says how much; `demo` is the demo's steps, `bench/`
what is measured.
"""

from pipeline.cli.main import app as app
from pipeline.cli.main import entry as entry
