"""Manifests on the command line, of a data set (`build`), of another manifest (`edits`), or of
several (`several`)."""
