from pipeline.frames import Squares, to_square

__all__ = ["Squares", "to_square"]
