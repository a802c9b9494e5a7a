"""The bridge to the physical arm: randomisation, identification, transports, safety, runtime. Nothing has landed here yet."""

__all__: list[str] = []
