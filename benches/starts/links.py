"""The links that starts are measured over, and how quick a start over one could be at best."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What `shaped-store` knows by this name."""

    name: str
    latency_s: float  # from a request to the first byte of its answer
    bandwidth: float  # bytes a second

    def ideal(self, needed_bytes, native_s):
        """Seconds of a start that knows what it needs and asks for all of it at once: one answer says
        what there is, one brings everything, and the programs run as they do on a local disk."""
        return 2 * self.latency_s + needed_bytes / self.bandwidth + native_s

    def __str__(self):
        if self.bandwidth == float("inf"):
            return f"{self.name} (not shaped)"
        gbit = self.bandwidth * 8 / 1e9
        speed = f"{gbit:g} Gbit/s" if gbit >= 1 else f"{gbit * 1000:g} Mbit/s"
        return f"{self.name} ({self.latency_s * 1000:g} ms, {speed})"


LINKS = {
    link.name: link
    for link in (
        Link("none", 0.0, float("inf")),
        Link("zone", 0.002, 10e9 / 8),
        Link("region", 0.020, 2e9 / 8),
        Link("wan", 0.050, 200e6 / 8),
    )
}
