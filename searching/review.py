"""People that were grouped, for people to look at: a table, and a page on which to correct them.

    write_people("people.csv", rows, numbers, confidence)        # whom each row shows, None where it stands alone
    write_page("people.html", rows, numbers, found)              # found: what groups.group gives
    persons, reviewed = read_people("people.csv")                # {path: person}, {paths that somebody looked at}

people.csv has a line per row: path, person, confidence, reviewed (1 where somebody looked). The page holds its images,
its script and its style. It asks of the pairs that are most in doubt whether they are one person, by two keys, and
shows a card per person to merge, to split, and to put aside what is no person. What was decided stays in the browser,
and its button gives people.csv back, which `search.py label` takes.

In an index a proposal is the person's number below zero: -7 is a person 7 that nobody has looked at, so no check and
no threshold takes it for known. -1 is junk, so people are numbered from 2 where nobody is known.
"""

import csv
import hashlib
import json
import os
from pathlib import Path
from string import Template

import numpy as np

from images import read_table
from searching.answers import data_uri, open_output, show
from searching.gallery import to_cell
from searching.sources import JUNK, find_listed, resolve

COLUMNS = ("path", "person", "confidence", "reviewed")
PAGE = Path(__file__).with_name("review.html")
CROPS = 5000  # on the page
QUESTIONS = 200  # pairs that it asks of
SHOWN = 12  # crops of each side of such a pair


def number_people(found, rows):
    """The person of each row as a number, or None: those known keep theirs, the others follow the largest, or 2."""
    start = max([1, *found.known.values(), *(row.pid for row in rows if row.pid is not None)]) + 1
    fresh = (number for number in range(len(found.person)) if number not in found.known)
    numbers = found.known | {number: start + place for place, number in enumerate(fresh)}
    return [numbers[number] if number >= 0 else None for number in found.person.tolist()]


def write_people(path, rows, numbers, confidence):
    """A line per row. Nothing in it counts as reviewed, but for persons that were known."""
    with open_output(path, None) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row, number, sure in zip(rows, numbers, confidence, strict=True):
            known = number is not None and row.pid == number
            writer.writerow([to_cell(row.path, "./"), "" if number is None else number, f"{sure:.3f}", int(known)])


def read_people(path):
    """({path: person or None}, {paths that somebody looked at}) of such a list; all of them where it has no column
    reviewed, as a list written by hand. ValueError names the line that cannot be read."""
    lines, _ = read_table(path, COLUMNS, COLUMNS[:2])
    persons, reviewed, folder = {}, set(), os.path.dirname(path)
    for number, line in lines:
        try:
            place, person = line["path"], int(line["person"]) if line["person"] else None
            looked = {"1": True, "": False, "0": False}[line.get("reviewed", "1")]
        except (ValueError, KeyError):
            raise ValueError(f"{path}, line {number}: person {line['person']!r}, reviewed "
                             f"{line.get('reviewed', '')!r}: a person is a whole number, -1 for what is no person, or "
                             "nothing; reviewed is 1 or 0") from None
        if person is not None and person < JUNK:
            raise ValueError(f"{path}, line {number}: person {person}: numbers below -1 are proposals of an index")
        listed = find_listed(folder, place)
        for name in {place, resolve(listed)} if os.path.lexists(listed) else {place}:
            if persons.setdefault(name, person) != person:
                raise ValueError(f"{path}, line {number}: {place} is person {persons[name]} and {person}")
            if looked:
                reviewed.add(name)
    return persons, reviewed


def write_page(path, rows, numbers, found, title):
    """The page. -> how many nodes it leaves out, which are the surest."""
    sure = np.array([found.confidence[places].mean() for places in found.nodes])
    people = [numbers[places[0]] for places in found.nodes]
    found_of = {}  # person -> confidence of each of its nodes
    for node, person in enumerate(people):
        found_of.setdefault(person, []).append(sure[node])
    doubt = {person: np.mean(values) for person, values in found_of.items()}
    order = sorted(range(len(people)), key=lambda node: (people[node] is None, doubt[people[node]],
                                                         people[node] or 0, node))  # fmt: skip
    asked = [node for *sides, _ in found.doubts[:QUESTIONS] for side in sides for node in side[:SHOWN]]
    shown = set(list(dict.fromkeys([*asked, *order]))[:CROPS])
    place_of = {node: place for place, node in enumerate(node for node in order if node in shown)}
    crops = []
    for node in place_of:
        places = found.nodes[node]
        row = rows[places[len(places) // 2]]
        told = [f"camera {row.camid}"] * bool(row.camid) + [f"{len(places)} images"] * (len(places) > 1)
        known = people[node] is not None and rows[places[0]].pid == people[node]
        crops.append({"paths": [to_cell(rows[place].path, "./") for place in places], "image": data_uri(row.path),
                      "name": os.path.basename(row.path), "told": ", ".join(told), "person": people[node],
                      "sure": [round(float(found.confidence[place]), 3) for place in places],
                      "reviewed": known})  # fmt: skip
    questions = [[[place_of[node] for node in side if node in shown] for side in sides]
                 for *sides, _ in found.doubts[:QUESTIONS]]  # fmt: skip
    data = {"crops": crops, "questions": [sides for sides in questions if all(sides)], "shown": SHOWN}
    data["key"] = hashlib.sha256(json.dumps([[crop["paths"], crop["person"]] for crop in crops]).encode()).hexdigest()
    text = json.dumps(data).replace("<", "\\u003c")  # no file name ends the script
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(title=show(title), data=text)
    with open_output(path, None) as file:
        file.write(page)
    return len(found.nodes) - len(crops)
