"""Where a gallery lies: in a folder, or in PostgreSQL. What differs between the two is said here and in postgres.py.

    with read_index("shop.index") as gallery:                                   # gallery.Index
    with read_index("postgresql://user@host/db?gallery=shop") as gallery:       # postgres.Index, which has its methods
    copy_rows(source, target)                                                   # from either into either

Nothing of a database is imported for a folder. An address is one that libpq takes (several hosts, TLS, everything that
may stand behind the question mark), and names the gallery. Its text, once it is an Address, is without passwords, so
that whatever prints it prints none.
"""

import os
import re
from urllib.parse import unquote

from searching import gallery

SCHEMES = "postgresql://", "postgres://"
FORM = "postgresql://user@host:port/database?gallery=name"
SECRETS = "password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"  # of libpq
BLOCK = 8192  # rows that are copied at a time, in one transaction


def is_address(place):
    return isinstance(place, str) and place.startswith(SCHEMES)


def is_index(place):
    return is_address(place) or os.path.isfile(os.path.join(place, "index.json"))


def without_passwords(text):
    """A text in which addresses may stand, as they were typed, without what may be a password."""
    text = re.sub(r"(postgres(?:ql)?://[^\s:/?@]*):.*@", r"\1@", str(text))
    return re.sub(rf"\b({'|'.join(SECRETS)})=[^&\s]*", r"\1=...", text)


class Address(str):
    """The address of a gallery, as text without passwords. gallery: its name; full: what libpq is given. ValueError,
    which repeats nothing of the text, where it cannot be one."""

    def __new__(cls, text):
        if isinstance(text, cls):
            return text
        scheme, _, rest = text.partition("://")
        head, _, tail = rest.partition("?")
        login, at, hosts = head.rpartition("@")
        if "@" in tail or "/" in login or "@" in login or "#" in head:
            raise ValueError(f"this address has a @ / ? or # where none can stand; the form is {FORM}. In a password "
                             "or a name they are written %40 %2F %3F %23")
        fields = [field.partition("=")[::2] for field in tail.split("&") if field]
        names = [unquote(value) for key, value in fields if key == "gallery"]
        if len(names) != 1 or not re.fullmatch(r"[\w.-]{1,100}", names[0]):
            raise ValueError(f"an address names one gallery, by up to 100 letters, digits and . _ -: {FORM}")
        others = [(key, value) for key, value in fields if key != "gallery"]
        shown = [f"{key}={value}" for key, value in others if key not in SECRETS]
        name = f"?gallery={names[0]}"
        self = super().__new__(cls, f"{scheme}://{login.partition(':')[0]}{at}{hosts}{'&'.join([name, *shown])}")
        self.gallery = names[0]
        self.full = f"{scheme}://{head}" + "?" * bool(others) + "&".join(map("=".join, others))
        return self


def import_postgres():
    """searching.postgres; ValueError where what it needs is not installed."""
    try:
        from searching import postgres
    except ImportError as error:
        raise ValueError(f"a gallery in PostgreSQL needs psycopg and pgvector ({error}): pip install "
                         "'psycopg[binary]' pgvector") from None
    return postgres


def read_index(place, live=False):
    """To search in what lies at a folder or an address. live: where other processes write, each search sees what is
    there then, rather than what was there at the first."""
    if is_address(place):
        return import_postgres().Index.read(Address(place), live)
    return gallery.Index.read(place)


def open_index(place, about):
    """To write into; made where it is missing. about: see gallery.describe."""
    return (import_postgres().Index.open(Address(place), about) if is_address(place)
            else gallery.Index.open(place, about))  # fmt: skip


def check_not_folder(place, flag):
    if not is_address(place):
        raise ValueError(f"{flag} is for galleries in PostgreSQL ({FORM}), and {place} is a folder, whose search is "
                         "exact")


def apart(row, clips):
    """What tells a row from others: its file, or of a model of tracklets what tells those apart."""
    return (clips and gallery.identity(row)) or row.path


def copy_rows(source, target, progress=lambda count: None):
    """Brings the rows of `source` into `target`: what is missing there, in its order, and what is known otherwise
    there. What only the target has stays. To be repeated where it was interrupted. -> (how many are new, how many
    were known otherwise). Rows are compared by all that is known of them, not by their features; of several of one
    name, the first with the first."""
    clips, places, added, changed = source.about.get("input") == "clips", {}, 0, 0
    for place, row in enumerate(target.rows):
        places.setdefault(apart(row, clips), []).append(place)
    for start in range(0, len(source.rows), BLOCK):
        rows, new, others = source.rows[start : start + BLOCK], [], []
        for number, row in enumerate(rows):
            there = places.get(apart(row, clips))
            place = there.pop(0) if there else None
            if place is None:
                new.append(number)
            elif target.rows[place] != row:
                others.append((place, number))
        if new or others:
            features = source.features[start : start + len(rows)]  # (n, D)
            for place, number in others:
                target.overwrite(place, features[number], rows[number])
            target.append(features[new], [rows[number] for number in new])
        added, changed = added + len(new), changed + len(others)
        progress(len(rows))
    if changed:
        target.keep(range(len(target.rows)))
    return added, changed
