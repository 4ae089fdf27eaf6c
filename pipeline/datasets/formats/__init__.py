"""File formats and layouts that several data sets share."""
