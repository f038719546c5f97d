"""The guest session: gRPC over a byte stream, and the only asyncio in boxlite."""
