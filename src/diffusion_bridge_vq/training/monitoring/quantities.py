"""Durations, sizes and counts as people read them."""


def duration(seconds: float) -> str:
    """12 s, 5 min, 3.4 h or 2.5 days."""
    if seconds < 90:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"


def number_of_weights(count: int) -> str:
    """640, 2.9K or 7.4M."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.1f}K" if count < 1e5 else f"{count / 1e6:.1f}M"
