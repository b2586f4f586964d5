"""A stand-in for Starlette, by which Ray Serve is asked."""
