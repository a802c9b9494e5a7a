"""The bridge to the physical arm: randomisation, identification, transports, safety. Nothing has landed here yet."""

__all__: list[str] = []
