"""A gallery in PostgreSQL with pgvector: many writers, many readers, many machines. No torch.

    gallery = Index.open("postgresql://user@host/db?gallery=shop", about)      # made where it is missing, to write into
    gallery = Index.read("postgresql://user@host/db?gallery=shop")             # to search in: as of the first look
    gallery = Index.read("postgresql://user@host/db?gallery=shop", live=True)  # each search: as of now

The methods are those of gallery.Index; stores.py chooses between the two. All lies in one schema:

| table | a line is |
|---|---|
| reid.version | which version of this schema it is |
| reid.galleries | a gallery: id, name, about (what index.json says), next_row (the id of the row to come) |
| reid.rows_7 | a row of the gallery with id 7: id, key, path ... mtime (the fields of gallery.Row) |
| reid.vectors_7 | its features: id of the row, feature vector(D) |

Tables per gallery: its column has a fixed D, which the server checks, an index of pgvector goes by column, an exact
search reads the vectors of its gallery and nothing else, and a gallery that is dropped gives its room back at once. The
name of a gallery is a value; of its tables, the number alone is put into a statement. Rows stand apart from vectors,
which take up a page each: so all rows are read without them, and a person is changed without writing features anew.
Features are stored PLAIN, in the line itself: a search would otherwise fetch each from a third table (see
docs/galleries.md for what both cost).

Whoever writes takes the line of the gallery in reid.galleries first, so batches follow one another, ids ascend in the
order in which batches appear, and two writers cannot wait for each other in a circle. A batch is a transaction: readers
see all of it or nothing. key is a hash of what tells a row apart (stores.apart), unique, and NULL where a name is no
path, since such names may come again: a second process that stores the same file changes the row of the first.

PostgreSQL's texts hold no bytes that are not UTF-8, which file names may: they stand there as characters of a private
use plane (U+10DC80 and up). Similarities are computed by the server in float32; equal ones rank in order of id.
Letters: N rows, D feature size, Q queries, k answers.
"""

import contextlib
import hashlib
import json
import os
import uuid
import warnings

import numpy as np
import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from images import camera_name
from searching.gallery import (
    GALLERY_BLOCK,
    Row,
    check_features,
    check_rows,
    check_same_model,
    choose_rows,
    merge_tracklets,
    top_k,
)
from searching.stores import Address, apart

VERSION = 2  # of the schema; in 1 the features stood in the table of the rows
LARGEST = 16_000  # features that a vector of pgvector has at the most
PLAIN = 1_900  # features up to which they are stored in the line: it has to fit into a page of 8 KB
HNSW = {"vector": 2_000, "halfvec": 4_000}  # features that such an index takes at the most
LIST = 100  # candidates of an approximate search (hnsw.ef_search), which are then ranked exactly
MANY = 16  # queries up to which the server ranks, see Index.search
HELD = 1_000  # rows that wait to be written anew
QUERIES = 100  # at a time, where tracklets are averaged
FIELDS = sql.SQL(", ").join(map(sql.Identifier, Row._fields))
TYPES = "int8", "uuid", "text", "int8", "text", "float8", "text", "int8", "int8", "int8"
HEADER, TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"  # of a binary COPY
PATHS, BYTES = 0x10DC80, 0xDC80  # where bytes 128 to 255 that are not UTF-8 stand in the database, and in Python
TO_TEXT = {BYTES + byte: PATHS + byte for byte in range(128)}
FROM_TEXT = {value: key for key, value in TO_TEXT.items()}

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS reid;
CREATE TABLE reid.version (version integer NOT NULL);
CREATE TABLE reid.galleries (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text UNIQUE NOT NULL,
    about json NOT NULL,
    next_row bigint NOT NULL DEFAULT 0);
INSERT INTO reid.version VALUES ({version});
"""
TABLES = """
CREATE TABLE {rows} (
    id bigint PRIMARY KEY,
    key uuid UNIQUE,
    path text NOT NULL,
    pid bigint,
    camid text NOT NULL,
    time double precision,
    tracklet text NOT NULL,
    frames bigint NOT NULL,
    size bigint NOT NULL,
    mtime bigint NOT NULL);
CREATE INDEX ON {rows} (camid, time);
CREATE TABLE {vectors} (
    id bigint PRIMARY KEY,
    feature vector({dim}) NOT NULL);
ALTER TABLE {vectors} ALTER feature SET STORAGE {storage};
"""
CAMERAS = """
WITH RECURSIVE found AS (
    (SELECT camid FROM {rows} ORDER BY camid LIMIT 1)
    UNION ALL
    SELECT (SELECT camid FROM {rows} WHERE camid > found.camid ORDER BY camid LIMIT 1) FROM found
    WHERE found.camid IS NOT NULL)
SELECT camid FROM found WHERE camid IS NOT NULL
"""
EVERY = sql.SQL("true")
PASSING = "id IN (SELECT id FROM {rows} WHERE {where})"
NEAREST = """
WITH near AS MATERIALIZED (
    SELECT id, -(feature <#> %(query)b) AS similarity FROM {vectors}
    WHERE {passing} AND id <> ALL(%(left_out)s::bigint[]) ORDER BY similarity DESC, id LIMIT %(top)s)
SELECT id, {fields}, similarity FROM near JOIN {rows} USING (id) ORDER BY similarity DESC, id
"""
APPROXIMATE = """
WITH near AS MATERIALIZED (
    SELECT id FROM {vectors} WHERE {passing} AND id <> ALL(%(left_out)s::bigint[])
    ORDER BY {distance} LIMIT %(candidates)s)
SELECT id, {fields}, -(feature <#> %(query)b) AS similarity
FROM near JOIN {vectors} USING (id) JOIN {rows} USING (id)
ORDER BY similarity DESC, id LIMIT %(top)s
"""
AVERAGED = """
WITH means AS MATERIALIZED (
    SELECT min(id) AS first, sum(frames)::bigint AS total, l2_normalize(avg(feature)) AS feature
    FROM {rows} JOIN {vectors} USING (id) WHERE {where}
    GROUP BY tracklet, pid, camid, CASE WHEN tracklet = '' THEN id END)
SELECT number, id, path, pid, camid, time, tracklet, total, size, mtime, similarity
FROM unnest(%(queries)b) WITH ORDINALITY AS asked (query, number)
CROSS JOIN LATERAL (
    SELECT first, total, -(means.feature <#> query) AS similarity FROM means
    WHERE NOT EXISTS (SELECT FROM unnest(%(numbers)s::bigint[], %(left_out)s::bigint[]) AS l (number, id)
                      WHERE l.number = asked.number AND l.id = first)
    ORDER BY similarity DESC, first LIMIT %(top)s) AS near
JOIN {rows} ON id = first
ORDER BY number, similarity DESC, id
"""
COPY_ROWS = "COPY {rows} (id, key, {fields}) FROM STDIN (FORMAT BINARY)"
COPY_VECTORS = "COPY {vectors} (id, feature) FROM STDIN (FORMAT BINARY)"
CHANGE_VECTOR = """
INSERT INTO {vectors} (id, feature) SELECT id, %(feature)b FROM {rows} WHERE id = %(id)s
ON CONFLICT (id) DO UPDATE SET feature = excluded.feature
"""
CHANGE_ROW = "UPDATE {rows} SET {changes} WHERE id = %(id)s"
FREE_KEYS = "UPDATE {rows} SET key = NULL WHERE id = ANY(%s::bigint[])"
FREE_KEY = """
(SELECT %(key)s::uuid WHERE NOT EXISTS (SELECT FROM {rows} WHERE key = %(key)s::uuid AND id <> %(id)s))
"""
JOIN_ROW = """
UPDATE {rows} SET path = %(path)s, pid = coalesce(%(pid)s, pid), camid = coalesce(nullif(%(camid)s, ''), camid),
time = %(time)s, tracklet = coalesce(nullif(%(tracklet)s, ''), tracklet), frames = %(frames)s, size = %(size)s,
mtime = %(mtime)s WHERE id = %(id)s RETURNING {fields}
"""


# ---- the connection ----


class ServerError(RuntimeError):
    """What the server, or the way to it, did not allow: one line, which says what to do."""


HINTS = {  # class of error, or state -> what to do
    errors.InvalidPassword: "give the password in PGPASSWORD or ~/.pgpass",
    errors.InvalidAuthorizationSpecification: "see the server's pg_hba.conf for who may connect from where",
    errors.DiskFull: "the disk of the server is full. Nothing of this batch was stored and all before it stays: make "
                     "room there and start the same command again",
    errors.QueryCanceled: "the server stopped this statement, of which nothing stays. Raise its limit, as by "
                          "&options=-c%20statement_timeout%3D0 behind the address, and start the same command again",
    errors.IdleInTransactionSessionTimeout: "raise idle_in_transaction_session_timeout for this role",
    errors.ReadOnlySqlTransaction: "this server only reads, as a replica does: give the address of the primary",
    errors.InsufficientPrivilege: "ask its owner for the grants that docs/galleries.md lists; to make a gallery or an "
                                  "HNSW index takes the owner",
    errors.TooManyConnections: "wait, or raise max_connections of the server",
    errors.CannotConnectNow: "the server starts or stops: wait, and start the same command again",
    errors.SerializationFailure: "another process changed the same rows: start the same command again",
    errors.DeadlockDetected: "another process changed the same rows: start the same command again",
    errors.UniqueViolation: "another process has just stored the same file: start the same command again",
    errors.UndefinedTable: "the gallery was dropped meanwhile, or the schema reid is not whole; start the same "
                           "command again",
    errors.ProgramLimitExceeded: "a camera is too long: an index of the server takes up to 2,700 bytes",
    errors.OutOfMemory: "the server is out of memory: lower its work_mem or its connections",
}  # fmt: skip
SAYINGS = {  # of libpq, which has no class of error for what hinders a connection
    "password authentication failed": HINTS[errors.InvalidPassword],
    "no password supplied": HINTS[errors.InvalidPassword],
    "no pg_hba.conf entry": HINTS[errors.InvalidAuthorizationSpecification],
    "does not exist": "check user and database in the address",
    "too many": HINTS[errors.TooManyConnections], "remaining connection slots": HINTS[errors.TooManyConnections],
    "starting up": HINTS[errors.CannotConnectNow], "shutting down": HINTS[errors.CannotConnectNow],
    "recovery": HINTS[errors.CannotConnectNow], "certificate": "see sslmode and sslrootcert in the address",
    "SSL": "see sslmode in the address",
}  # fmt: skip


def explain(error, address, connected=True):
    """The ServerError for an error of psycopg: what the server said, in a line without passwords, and what to do."""
    said = " ".join((error.diag.message_primary or str(error) or type(error).__name__).split())
    for secret in {conninfo_to_dict(address.full).get("password"), os.environ.get("PGPASSWORD")} - {None, ""}:
        said = said.replace(secret, "...")
    hint = next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), None)
    hint = hint or next((hint for saying, hint in SAYINGS.items() if saying in said and not connected), None)
    if hint is None and isinstance(error, psycopg.OperationalError):
        hint = ("the connection was lost. What was stored before stays, nothing is half stored: start the same command "
                "again when the server is back" if connected else "is the server up, and are host and port right?")
    return ServerError(f"{address}: {said}" + f"; {hint}" * bool(hint))


def connect(address):
    """A connection in which each statement is a transaction, unless they are grouped. ServerError, ValueError."""
    try:
        told = conninfo_to_dict(address.full)
    except psycopg.ProgrammingError:  # its text may repeat a password
        raise ValueError(f"{address}: libpq cannot read this address; names and passwords in it take %40 for @, %2F "
                         "for /, %25 for %, and behind the ? it knows the parameters of PostgreSQL's documentation"
                         ) from None  # fmt: skip
    try:
        connection = psycopg.connect(**{"connect_timeout": 10, "application_name": "search.py"} | told, autocommit=True)
    except psycopg.Error as error:
        raise explain(error, address, connected=False) from None
    connection.add_notice_handler(tell_notice)
    with telling(address):
        connection.execute("SET jit = off")  # compiling takes longer than what it saves
        # the planner counts pages that are read, which several processes read no faster, and not what a product costs:
        # with its 1000 it would let one process search alone
        connection.execute("SET parallel_setup_cost = 100")
        connection.execute("SET client_encoding = 'UTF8'")
    return connection


def tell_notice(told):
    if told.severity_nonlocalized == "WARNING" or "hnsw graph" in (told.message_primary or ""):
        warnings.warn(f"the server says: {told.message_primary}", stacklevel=2)


@contextlib.contextmanager
def telling(address):
    """Turns what psycopg raises into a ServerError."""
    try:
        yield
    except psycopg.Error as error:
        raise explain(error, address) from None


def register(connection, address):
    """Makes the connection know vectors, wherever the extension lies. ValueError where the database has none."""
    found = connection.execute("SELECT nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace "
                               "WHERE extname = 'vector'").fetchone()  # fmt: skip
    if not found:
        raise ValueError(f"{address}: this database has no extension vector; python search.py index makes a gallery "
                         "with all it needs")
    path = sql.Identifier(found[0]).as_string(connection)
    connection.execute("SELECT set_config('search_path', %s, false)", [f"pg_catalog, {path}"])
    register_vector(connection)


def make_schema(connection, address):
    """The extension and the schema, where they are missing. One process at a time does so."""
    if connection.execute("SELECT to_regclass('reid.galleries')").fetchone()[0]:
        return
    encoding = connection.execute("SHOW server_encoding").fetchone()[0]
    if encoding != "UTF8":
        raise ValueError(f"{address}: this database is encoded in {encoding}, which holds few names: make one by "
                         "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0")
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('reid'))")
        try:
            with connection.transaction():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except (errors.InsufficientPrivilege, errors.UndefinedFile, errors.FeatureNotSupported) as error:
            raise ValueError(f"{address}: {' '.join(str(error.diag.message_primary).split())}; install pgvector on the "
                             "server, then run CREATE EXTENSION vector in this database as its owner") from None
        if not connection.execute("SELECT to_regclass('reid.galleries')").fetchone()[0]:
            connection.execute(sql.SQL(SCHEMA).format(version=VERSION))


def check_version(connection, address):
    version = connection.execute("SELECT version FROM reid.version").fetchone()
    if not version or version[0] != VERSION:
        raise ValueError(f"{address}: the schema reid is of version {version and version[0]}, this search.py knows "
                         f"{VERSION}: use the search.py that made it, or another database; docs/galleries.md says how "
                         "to bring galleries over")


def make_gallery(connection, address, about):
    """The line of a gallery and its tables, where they are missing; one process at a time."""
    dim = about["feature_dim"]
    if not 1 <= dim <= LARGEST:
        raise ValueError(f"{address}: {dim:,} features do not fit into a vector of pgvector, which has up to "
                         f"{LARGEST:,}; export a network with fewer, or index into a folder")
    if connection.execute("SELECT 1 FROM reid.galleries WHERE name = %s", [address.gallery]).fetchone():
        return
    with connection.transaction():
        made = connection.execute("INSERT INTO reid.galleries (name, about) VALUES (%s, %s) ON CONFLICT DO NOTHING "
                                  "RETURNING id", [address.gallery, json.dumps(about)]).fetchone()  # fmt: skip
        if made:
            storage = sql.SQL("PLAIN" if dim <= PLAIN else "EXTERNAL")
            connection.execute(sql.SQL(TABLES).format(**tables_of(*made), dim=dim, storage=storage))


def tables_of(number):
    return {name: sql.Identifier("reid", f"{name}_{int(number)}") for name in ("rows", "vectors")}


# ---- rows and features, as the server has them ----


def to_text(text, name):
    """A text of a row for the server. ValueError for what it cannot hold."""
    if text.isascii() and "\0" not in text:
        return text
    if "\0" in text or any(PATHS <= ord(letter) < PATHS + 128 for letter in text):
        raise ValueError(f"{name} {text[:100]!r} holds a zero byte or a character of U+10DC80 to U+10DCFF, which a "
                         "gallery in PostgreSQL cannot: rename it")
    return text.translate(TO_TEXT)


def to_row(fields):
    """A Row of what the server tells: id may stand before."""
    path, pid, camid, time, tracklet, *rest = fields
    if not (path.isascii() and camid.isascii() and tracklet.isascii()):
        path, camid, tracklet = (text.translate(FROM_TEXT) for text in (path, camid, tracklet))
    return Row(path, pid, camid, time, tracklet, *rest)


def to_values(row, clips):
    """{column: value} of a row, for the server."""
    row = row._replace(camid=camera_name(row.camid))
    texts = {name: to_text(str(getattr(row, name)), name) for name in ("path", "camid", "tracklet")}
    time = None if row.time is None else float(row.time)
    for name in ("pid", "frames", "size", "mtime"):
        if abs(getattr(row, name) or 0) >= 2**63:
            raise ValueError(f"{name} {getattr(row, name)} of {row.path}: a gallery in PostgreSQL holds whole numbers "
                             "below 2**63")
    return {"key": make_key(row, clips), **row._asdict(), **texts, "time": time}


def make_key(row, clips):
    """A hash of what tells a row apart; None for a name that is no path, which may come again."""
    told = apart(row, clips)
    if isinstance(told, str) and not os.path.isabs(told):
        return None
    text = json.dumps(told)  # escapes what is not UTF-8
    return uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])


def type_of_line(dim):
    """Of (id, feature) in a binary COPY: how many fields, then each behind its length in bytes."""
    return np.dtype([("fields", ">i2"), ("id_length", ">i4"), ("id", ">i8"), ("length", ">i4"), ("dim", ">i2"),
                     ("unused", ">i2"), ("values", ">f4", dim)])  # fmt: skip


def to_lines(ids, features):
    """Ids (n,) and features (n, D) as such lines (n,)."""
    dim = features.shape[1]
    lines = np.zeros(len(ids), type_of_line(dim))
    lines["fields"], lines["id_length"], lines["length"], lines["dim"] = 2, 8, 4 + 4 * dim, dim
    lines["id"], lines["values"] = ids, features
    return lines


class Features:
    """The features of an Index, read in blocks: features[3:9] is float32 (6, D)."""

    def __init__(self, index):
        self.index, self.ids = index, np.array(index.ids, np.int64)
        self.shape = len(self.ids), index.dim

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, chosen):
        ids = self.ids[chosen]
        return self.index.read_features(ids.reshape(-1)).reshape(*ids.shape, self.shape[1])


# ---- the gallery ----


class Index:
    """See the top. `about` is what reid.galleries says, `folder` the address without its password, `rows` a list of Row
    in order of id, read when it is first looked at. lock: whether it was opened to write."""

    @classmethod
    def read(cls, address, live=False):
        """To search in. ValueError where there is no such gallery, ServerError where the server says no."""
        return cls(address, live=live)

    @classmethod
    def open(cls, address, about):
        """To write into. ValueError also where another model made the gallery."""
        return cls(address, {key: value for key, value in about.items() if key != "schema"})

    def __init__(self, address, about=None, live=False):
        self.folder = self.address = Address(address)
        self.lock, self.live = about is not None, live
        self.number, self.connection = None, connect(self.address)
        try:
            with telling(self.address):
                self.start(about)
        except BaseException:
            self.close()
            raise

    def start(self, about=None):
        connection, address = self.connection, self.address
        if about is not None:
            make_schema(connection, address)
        elif not connection.execute("SELECT to_regclass('reid.galleries')").fetchone()[0]:
            raise ValueError(f"{address}: no gallery was ever made in this database; python search.py index makes one")
        register(connection, address)
        check_version(connection, address)
        if about is not None:
            make_gallery(connection, address, about)
        if not self.lock and not self.live:  # all statements from here on see one moment
            connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
            connection.autocommit = False
        found = connection.execute("SELECT id, about FROM reid.galleries WHERE name = %s", [address.gallery]).fetchone()
        if not found:
            names = [name for (name,) in connection.execute("SELECT name FROM reid.galleries ORDER BY name LIMIT 20")]
            raise ValueError(f"{address}: no such gallery; there are: {', '.join(names) or 'none'}")
        if self.number != found[0]:
            self.known, self.fresh = None, {}  # see load; {place: feature} of rows that are to be written anew
        self.number, self.about = found
        self.tables, self.dim = tables_of(self.number), self.about["feature_dim"]
        self.clips = self.about.get("input") == "clips"
        if about is not None:
            check_same_model(self.about, about, address, to_add=True)

    @contextlib.contextmanager
    def telling(self):
        """As above. A gallery that was dropped may be there anew: the next call looks for it."""
        try:
            with telling(self.address):
                yield
        except ServerError as error:
            if isinstance(error.__context__, errors.UndefinedTable):
                self.close()
            raise

    def connected(self):
        """The connection; a new one where the last was lost and nothing depends on what it saw."""
        if self.connection.closed and (self.lock or self.live):
            self.connection = connect(self.address)
            with self.telling():
                self.start()
        return self.connection

    def close(self):
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def statement(self, text, **parts):
        return sql.SQL(text).format(**self.tables, fields=FIELDS, **parts)

    def __len__(self):
        with self.telling():
            return self.connected().execute(self.statement("SELECT count(*) FROM {rows}")).fetchone()[0]

    def load(self):
        """(ids, rows, the same rows as the server has them, {id: place in those lists}), read at the first call."""
        if self.known is None:
            ids, rows = [], []
            with self.telling(), self.connected().cursor(binary=True) as cursor:
                cursor.execute(self.statement("SELECT id, {fields} FROM {rows} ORDER BY id"))
                for number, *fields in cursor:
                    ids.append(number)
                    rows.append(to_row(fields))
            self.known = ids, rows, list(rows), {number: place for place, number in enumerate(ids)}
        return self.known

    @property
    def ids(self):
        return self.load()[0]

    @property
    def rows(self):
        return self.load()[1]

    @property
    def features(self):
        """Those of rows: (N, D), to be read in blocks."""
        return Features(self)

    def read_features(self, ids):
        """float32 (n, D) of the rows with these ids, in this order. ServerError where one of them was removed."""
        order, sorted_ids = np.argsort(ids, kind="stable"), np.sort(ids)
        dense = len(ids) and sorted_ids[-1] - sorted_ids[0] < 2 * len(ids)  # reading some too many takes less time
        which, values = ("BETWEEN %s AND %s", sorted_ids[[0, -1]]) if dense else ("= ANY(%s)", [sorted_ids])
        text = self.statement("COPY (SELECT id, feature FROM {vectors} WHERE id {which} ORDER BY id) TO STDOUT "
                              "(FORMAT BINARY)", which=sql.SQL(which))  # fmt: skip
        with self.telling(), self.connected().cursor() as cursor:
            with cursor.copy(text, [value.tolist() for value in values]) as copy:
                data = b"".join(copy)
        found = np.frombuffer(data[len(HEADER) : -len(TRAILER)], type_of_line(self.dim))
        places = np.searchsorted(found["id"], sorted_ids)
        if not np.array_equal(found["id"][np.minimum(places, len(found) - 1)] if len(found) else [], sorted_ids):
            raise self.removed()
        features = np.empty((len(ids), self.dim), np.float32)
        features[order] = found["values"][places]
        return features

    def removed(self):
        """The ServerError for a row that is known here and has no line, or no vector, there."""
        if self.lock or self.live:
            return ServerError(f"{self.address}: another process removed rows meanwhile; start the same command again")
        table, vectors = (f"reid.{name}_{self.number}" for name in self.tables)  # of one moment, and yet
        return ServerError(f"{self.address}: rows have no features: DELETE FROM {table} WHERE id NOT IN (SELECT id "
                           f"FROM {vectors}), then index their files again")

    # -- what is written; each of these is a transaction --

    @contextlib.contextmanager
    def writing(self, count=0):
        """(a cursor, `count` new ids) in a transaction between which and its end no other writer of this gallery comes.
        Rows that are to be written anew go with it."""
        if not self.lock:
            raise ValueError(f"{self.address} was opened to search in")
        _, rows, stored, _ = self.load()
        with self.telling(), self.connected().transaction(), self.connection.cursor() as cursor:
            cursor.execute("UPDATE reid.galleries SET next_row = next_row + %s WHERE id = %s RETURNING next_row",
                           [count, self.number])  # fmt: skip
            found = cursor.fetchone()
            if not found:
                raise errors.UndefinedTable("no such gallery any more")
            yield cursor, range(found[0] - count, found[0])
            self.update(cursor, self.fresh)
        for place in self.fresh:
            stored[place] = rows[place]
        self.fresh = {}

    def update(self, cursor, places):
        """What is known here of the rows at these places and was not stored, with the features of those that are to be
        written anew. What else other processes stored of them stays; a row that one of them removed stays removed."""
        ids, rows, stored, _ = self.load()
        changed = {}  # names of columns -> the values of rows in which these have changed
        for place in places:
            old, new = (to_values(row, self.clips) for row in (stored[place], rows[place]))
            names = tuple(name for name in new if new[name] != old[name])
            changed.setdefault(names, []).append({**new, "id": ids[place]})
        # of tracklets, a key follows from the person, too: it may pass from one row to another
        if freed := [value["id"] for names, values in changed.items() if "key" in names for value in values]:
            cursor.execute(self.statement(FREE_KEYS), [freed])
        for names, values in changed.items():
            news = {name: self.statement(FREE_KEY) if name == "key" else sql.Placeholder(name) for name in names}
            parts = [sql.SQL("{} = {}").format(sql.Identifier(name), new) for name, new in news.items()]
            if parts:
                cursor.executemany(self.statement(CHANGE_ROW, changes=sql.SQL(", ").join(parts)), values)
        if anew := [place for place in places if place in self.fresh]:
            vectors = [{"feature": Vector(self.fresh[place]), "id": ids[place]} for place in anew]
            cursor.executemany(self.statement(CHANGE_VECTOR), vectors)

    def append(self, features, rows):
        """Rows behind those that are there; a file that is there already is changed in its place. All, or nothing."""
        features, rows = check_features(features, self.dim), list(rows)
        if len(features) != len(rows):
            raise ValueError(f"{len(features)} features, but {len(rows)} rows that say what they are of")
        check_rows(rows)
        values = [to_values(row, self.clips) for row in rows]
        last = {value["key"]: number for number, value in enumerate(values)}  # of a file that is given twice
        new = [number for number, value in enumerate(values) if value["key"] is None or last[value["key"]] == number]
        if not new:
            return
        with self.writing(len(new)) as (cursor, ids):
            cursor.execute(self.statement("SELECT key, id FROM {rows} WHERE key = ANY(%s)"), [list(last)])
            there = dict(cursor.fetchall())
            ids = dict(zip(new, ids, strict=True))
            joined = [number for number in new if values[number]["key"] in there]
            added = [number for number in new if values[number]["key"] not in there]
            with cursor.copy(self.statement(COPY_ROWS)) as copy:
                copy.set_types(TYPES)
                for number in added:
                    copy.write_row([ids[number], *values[number].values()])
            with cursor.copy(self.statement(COPY_VECTORS)) as copy:
                copy.write(HEADER + to_lines([ids[number] for number in added], features[added]).tobytes() + TRAILER)
            learned = [(ids[number], rows[number]) for number in added]
            for number in joined:
                told = {**values[number], "id": there[values[number]["key"]], "feature": Vector(features[number])}
                row = cursor.execute(self.statement(JOIN_ROW), told).fetchone()
                if row is None:  # by somebody who did not take the line of the gallery first
                    raise self.removed()
                learned.append((told["id"], to_row(row)))
                cursor.execute(self.statement(CHANGE_VECTOR), told)
        self.learn(learned)

    def learn(self, added):
        """Takes down [(id, row)] as stored; what another process had stored stands behind what was known here."""
        ids, rows, stored, places = self.load()
        for number, row in added:
            place = places.setdefault(number, len(ids))
            if place == len(ids):
                ids.append(number)
                rows.append(row)
                stored.append(row)
            rows[place] = stored[place] = row

    def overwrite(self, number, feature, row):
        """One row anew, of a file that changed. Written with others: by the next append or keep at the latest."""
        self.fresh[number] = check_features(feature[None], self.dim)[0]
        self.rows[number] = row
        if len(self.fresh) >= HELD:
            with self.writing():
                pass

    def keep(self, numbers):
        """Removes, of the rows that are known here, all but those with these ascending numbers; the server then says
        of them what `rows` says. What other processes stored meanwhile stays."""
        ids, rows, stored, _ = self.load()
        kept = sorted(set(numbers) & set(range(len(ids))))
        dropped = sorted(set(range(len(ids))) - set(kept))
        self.fresh = {place: feature for place, feature in self.fresh.items() if place not in set(dropped)}
        with self.writing() as (cursor, _):
            self.update(cursor, [place for place in kept if rows[place] != stored[place] and place not in self.fresh])
            gone = [ids[place] for place in dropped]
            for table in ("rows", "vectors"):
                cursor.execute(self.statement(f"DELETE FROM {{{table}}} WHERE id = ANY(%s::bigint[])"), [gone])
        ids, rows = [ids[place] for place in kept], [rows[place] for place in kept]
        self.known = ids, rows, list(rows), {number: place for place, number in enumerate(ids)}

    # -- what is searched --

    def search(self, queries, top, leave_out=(), *, average=False, approximate=False, **filters):
        """See Gallery.search. The server ranks; rows are those that were found. approximate: by the HNSW index. More
        than MANY queries are ranked here, as in a folder, where all is of one moment: the server reads its table once
        for each query, and once to send it."""
        if top < 1:
            raise ValueError(f"top is {top}; a ranking needs at least 1")
        if len(queries) > MANY and not (average or approximate or self.live or self.lock):
            chosen, top = choose_rows(self.rows, **filters), min(top, max(1, len(self.rows)))
            return self.rows, *top_k(queries, self.features, top, leave_out, GALLERY_BLOCK, chosen)
        with self.telling():
            self.connected()  # what tables it has is known then
            where, values = self.conditions(**filters)
            left_out = self.left_out(len(queries), leave_out, average, filters)
            if average and approximate:
                raise ValueError("an approximate search ranks rows, not tracklets: leave one of the two out")
            if average:
                found = self.nearest_averages(queries, top, where, values, left_out)
            else:
                distance = self.distance() if approximate else None
                passing = self.statement(PASSING, where=where) if where != EVERY else where
                found = [self.nearest(query, top, passing, {**values, "left_out": ids}, distance)
                         for query, ids in zip(queries, left_out, strict=True)]  # fmt: skip
        rows, places = [], {}
        indices = np.full((len(queries), max([1, *map(len, found)])), -1)
        similarities = np.full(indices.shape, -np.inf, np.float32)
        for number, hits in enumerate(found):
            for rank, (place, *fields, similarity) in enumerate(hits):
                if places.setdefault(place, len(rows)) == len(rows):
                    rows.append(to_row(fields))
                indices[number, rank], similarities[number, rank] = places[place], similarity
        return rows, indices, similarities

    def conditions(self, after=None, before=None, **cameras):
        """(what stands behind WHERE, its values) for the filters of choose_rows, which says what cameras are alike."""
        parts, values = [], {"after": after, "before": before}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no row is of these cameras: what counts is whether any are given
            filtered = choose_rows([], **cameras) is not None
        if filtered:
            there = [camid for (camid,) in self.connected().execute(self.statement(CAMERAS))]
            passing = choose_rows([Row("", camid=camid.translate(FROM_TEXT)) for camid in there], **cameras)
            values["cameras"] = [there[place] for place in passing]
            parts.append(sql.SQL("camid = ANY(%(cameras)s::text[])"))
        if after is not None:
            parts.append(sql.SQL("time >= %(after)s::float8"))
        if before is not None:
            parts.append(sql.SQL("time <= %(before)s::float8"))
        return sql.SQL(" AND ").join(parts) if parts else EVERY, values

    def left_out(self, count, leave_out, average, filters):
        """Of each query the ids that it must not find, of rows or of the first rows of tracklets."""
        found = [[] for _ in range(count)]
        if leave_out:
            ids = np.array(self.ids, np.int64)
            if average:
                _, members = merge_tracklets(self.rows, choose_rows(self.rows, **filters))
                ids = ids[[places[0] for places in members]]
        for ours, theirs in leave_out:
            for query in np.flatnonzero(np.isin(ours, theirs)):
                found[query] += ids[theirs == ours[query]].tolist()
        return found

    def nearest(self, query, top, passing, values, distance=None):
        """[(id, path, ..., similarity)] of the rows nearest to a query (D,), ranked exactly. distance: of an index, of
        whose candidates they are; where those are too few, as after narrow filters, all rows are looked at."""
        values = {**values, "query": Vector(query), "top": top, "candidates": max(top, LIST)}
        if distance:
            text = self.statement(APPROXIMATE, passing=passing, distance=distance)
            found = self.connected().execute(text, values, prepare=False).fetchall()
            if len(found) >= top:
                return found
        text = self.statement(NEAREST, passing=passing)
        return self.connected().execute(text, values, prepare=False).fetchall()

    def nearest_averages(self, queries, top, where, values, left_out):
        """The same for tracklets and all queries (Q, D): [hits of each]."""
        found = [[] for _ in left_out]
        for start in range(0, len(found), QUERIES):
            asked = queries[start : start + QUERIES]
            theirs = enumerate(left_out[start : start + QUERIES], start=1)
            pairs = [(number, place) for number, ids in theirs for place in ids]
            told = {**values, "queries": [Vector(query) for query in asked], "top": top,
                    "numbers": [number for number, _ in pairs], "left_out": [place for _, place in pairs]}  # fmt: skip
            text = self.statement(AVERAGED, where=where)
            for number, *hit in self.connected().execute(text, told, prepare=False):
                found[start + number - 1].append(hit)
        return found

    # -- the approximate index --

    def distance(self):
        """What the HNSW index orders by, in SQL; the connection is set to use it. ValueError where there is none."""
        kind = self.connected().execute(
            "SELECT split_part(opcname, '_', 1) FROM pg_class c JOIN pg_index ON indexrelid = c.oid "
            "JOIN pg_opclass o ON o.oid = indclass[0] WHERE relname = %s AND relnamespace = to_regnamespace('reid')",
            [f"vectors_{self.number}_hnsw"]).fetchone()  # fmt: skip
        if not kind:
            raise ValueError(f"{self.address} has no index for approximate search; python search.py index --hnsw "
                             "--index ... builds it")
        self.connection.execute(sql.SQL("SET hnsw.ef_search = {}").format(LIST))
        self.connection.execute("SET hnsw.iterative_scan = strict_order")  # goes on until enough rows pass the filters
        return sql.SQL("feature::{kind} <#> %(query)b::{kind}").format(kind=self.kind(kind[0]))

    def kind(self, name):
        return sql.SQL("{}({})").format(sql.SQL(name), self.dim)

    def build_hnsw(self, half=False):
        """The HNSW index, anew. half: of 16-bit floats, which take half the room; more than 2,000 features always are.
        Other writers wait until it is built, readers do not; the old one stays until then."""
        name = "halfvec" if half or self.dim > HNSW["vector"] else "vector"
        if self.dim > HNSW[name]:
            raise ValueError(f"{self.address}: HNSW takes up to {HNSW[name]:,} features, this gallery has "
                             f"{self.dim:,}; its exact search takes more")
        index, kind, ops = sql.Identifier(f"vectors_{self.number}_hnsw"), self.kind(name), sql.SQL(f"{name}_ip_ops")
        fresh = sql.Identifier(f"vectors_{self.number}_hnsw_new")
        with self.writing() as (cursor, _):
            text = "CREATE INDEX {fresh} ON {vectors} USING hnsw ((feature::{kind}) {ops})"
            cursor.execute(self.statement(text, fresh=fresh, kind=kind, ops=ops))
            cursor.execute(sql.SQL("DROP INDEX IF EXISTS reid.{}").format(index))  # now: it keeps readers out
            cursor.execute(sql.SQL("ALTER INDEX reid.{} RENAME TO {}").format(fresh, index))

    def recall(self, top=10, count=50):
        """(the share of the exact answers that approximate ones hold, how many queries told so): rows of the gallery,
        evenly spread."""
        with self.telling():
            ends = self.connected().execute(self.statement("SELECT min(id), max(id) FROM {vectors}")).fetchone()
            if ends[0] is None:
                return 1.0, 0
            text, ids = self.statement("SELECT id FROM {vectors} WHERE id >= %s ORDER BY id LIMIT 1"), set()
            for least in np.linspace(*ends, count).astype(int).tolist():
                ids |= {*self.connection.execute(text, [least]).fetchone()}
            shares, plain = [], (EVERY, {"left_out": []})
            distance = self.distance()
            for query in self.read_features(np.array(sorted(ids))):
                exact, near = ({hit[0] for hit in self.nearest(query, top, *plain, how)} for how in (None, distance))
                shares.append(len(exact & near) / len(exact))
        return float(np.mean(shares)), len(shares)
