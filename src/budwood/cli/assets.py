"""`budwood assets`: the demo models and data, fetched once and kept in a cache."""

from __future__ import annotations

from cyclopts import App

from budwood.cli.options import Talk
from budwood.cli.output import Table, size

app = App(
    name="assets", group_commands="Verbs", help_epilogue="", help="List, fetch and remove the demo models and data."
)


@app.command
def ls(*, talk: Talk | None = None) -> int:
    """The demo assets: licence, size, and where they lie."""
    from budwood.assets.store import cache_root, entries

    sink = (talk or Talk()).sink()
    found = entries()
    rows = [
        (e.asset.name, e.asset.kind, size(e.num_bytes or e.asset.wheel_bytes), "here" if e.folder else "to fetch",
         e.asset.licence, e.asset.about)
        for e in found
    ]  # fmt: skip
    sink.show(Table(("asset", "kind", ">size", "", "licence", "what it is"), rows))
    sink.say()
    sink.say(f"cache: {cache_root()} (BUDWOOD_CACHE moves it)")
    sink.result({
        "cache": str(cache_root()),
        "assets": [
            {"name": e.asset.name, "kind": e.asset.kind, "about": e.asset.about, "licence": e.asset.licence,
             "from": e.asset.pin, "sha256": e.asset.sha256, "path": e.folder and str(e.folder), "bytes": e.num_bytes}
            for e in found
        ],
    })  # fmt: skip
    return 0


@app.command
def get(*names: str, offline: bool = False, talk: Talk | None = None) -> int:
    """Fetch assets and print where they lie.

    Parameters
    ----------
    names: str
        Which; demo-lm and demo-chat if none is named.
    offline: bool
        Never use the network: take wheels from the folders of BUDWOOD_WHEELS.
    """
    from budwood.assets.store import get as fetch

    sink = (talk or Talk()).sink()
    paths = {name: fetch(name, offline=offline, say=sink.say) for name in names or ("demo-lm", "demo-chat")}
    for path in paths.values():
        sink.data(str(path))
    sink.result({"paths": {name: str(path) for name, path in paths.items()}})
    return 0


@app.command
def clean(*names: str, talk: Talk | None = None) -> int:
    """Remove assets from the cache.

    Parameters
    ----------
    names: str
        Which; all of them if none is named.
    """
    from budwood.assets.store import clean as remove

    sink = (talk or Talk()).sink()
    freed = remove(names)
    sink.say(f"freed {size(freed)}")
    sink.result({"freed_bytes": freed})
    return 0
