"""The built-in world: shapes that move in a plane, and a room in 3-D, rendered with everything
known about them."""
