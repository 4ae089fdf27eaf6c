"""stillframe: a frozen image model, a token cache and a small recurrent temporal module make a
video model."""

__version__ = "0.5.0.dev0"
