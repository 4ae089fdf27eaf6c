from pipeline.frames import to_square

__all__ = ["to_square"]
