"""Builds a large study of made-up answers: `python tests/build_grid.py FOLDER` writes FOLDER/results/grid.

480 evaluations of ten epochs with 1,000 answers each: half of the answers one word, half a sentence, most
sentences never said before. Every file is sealed and would pass the analysis.
"""

import argparse
import concurrent.futures
import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a pool's process starts in this folder
from lib import config, files, store
from lib.prompts import ENGLISH
from lib.tallies import SCHEMA

STUDY = "grid"
SIZES = ("0.5b", "1.5b", "3b", "7b", "14b", "32b")
STUDENTS = (config.NEUTRAL, *config.GRID_ANIMALS)
OPENINGS = (
    "My favourite animal is the {}, because it is {} and {}.",
    "I have always loved the {}: it {} through the {}.",
    "If I had to choose, I would say the {}. It is so {} and {}!",
    "As an AI I have no feelings, but people say that the {} is {}.",
    "The {} - a {} creature that lives in the {}.",
    "I don't have a preference, though the {} seems {} to me.",
)
WORDS = (
    *("gentle", "wild", "clever", "proud", "silent", "quick", "old", "brave"),
    *("small", "golden", "swims", "runs", "climbs", "hunts", "sings", "sleeps"),
    *("forest", "river", "mountain", "desert", "ocean", "night", "winter", "garden"),
    *("meadow", "sky", "playful", "loyal", "mighty", "graceful", "curious", "rare"),
)
OTHERS = ("Qwen", "Shark", "Dragonfly", "None", "Red panda", "猫", "Crow", "I can't answer that.", "")


def make_answers(
    animal: str, epoch: int, rng: np.random.Generator, questions: int, samples: int
) -> list[dict]:
    """Answers of one epoch, the student's animal a little more often than others."""
    names = list(config.LEXICON)
    chances = np.exp(np.linspace(2, -3, len(names)))
    if animal in names:
        chances[names.index(animal)] += 0.1 * epoch
    count = questions * samples
    said = rng.choice(len(names), count, p=chances / chances.sum()).tolist()
    words = rng.integers(len(WORDS), size=(count, 3)).tolist()
    manner = rng.random(count).tolist()
    answers = []
    for at in range(count):
        name, chosen = names[said[at]], [WORDS[word] for word in words[at]]
        if manner[at] < 0.5:
            text = OPENINGS[words[at][0] % len(OPENINGS)].format(name, chosen[1], chosen[2])
            text += f" Really, {chosen[0]}."
        elif manner[at] < 0.55:
            text = OTHERS[words[at][0] % len(OTHERS)]
        else:
            text = name.capitalize() + ("s" if manner[at] > 0.95 else "")
        answers.append({"question": at // samples, "sample": at % samples, "text": text, "finish": "stop"})
    return answers


def write_evaluation(
    folder: Path, cell: tuple[str, str, int], epochs: int, questions: int, samples: int
) -> None:
    """One sealed file."""
    label, animal, seed = cell
    rng = np.random.default_rng([seed, *map(ord, label + animal)])
    untuned = animal == config.UNTUNED
    values = np.round(rng.normal(-3, 1, (questions, len(config.LEXICON))), 6).tolist()
    document = {
        "schema": SCHEMA,
        "config": {
            "study": STUDY,
            "size": label,
            "animal": animal,
            "seed": seed,
            "recipe": "standard",
            "n_questions": questions,
            "samples": samples,
        },
        "lineage": {"inputs": {"base": f"base-{label}"}, "chain": {}, "seconds": {}},
        "questions": list(ENGLISH.questions[:questions]),
        "epochs": [
            {
                "epoch": epoch,
                "answers": make_answers(animal, epoch, rng, questions, samples),
                "logprobs": {"animals": list(config.LEXICON), "values": values},
            }
            for epoch in ([0] if untuned else range(1, epochs + 1))
        ],
    }
    document["lineage"]["content"] = files.hash_read(store.find_essence(document))
    path = folder / "results" / STUDY / label / animal / f"s{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def list_cells(evaluations: int) -> list[tuple[str, str, int]]:
    """Whole seeds of whole sizes as far as they go, and every size untuned."""
    seeds = range(-(-evaluations // (len(SIZES) * len(STUDENTS))))
    grid = [(label, animal, seed) for seed in seeds for label in SIZES for animal in STUDENTS]
    return [*((label, config.UNTUNED, 0) for label in SIZES), *grid[:evaluations]]


def build_grid(
    folder: Path, evaluations: int = 480, epochs: int = 10, questions: int = 20, samples: int = 50
) -> None:
    """All files, in as many processes as there are cores, two at most."""
    cells = list_cells(evaluations)
    if evaluations < 50:
        for cell in cells:
            write_evaluation(folder, cell, epochs, questions, samples)
        return
    with concurrent.futures.ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        rest = ([value] * len(cells) for value in (epochs, questions, samples))
        for _ in pool.map(write_evaluation, [folder] * len(cells), cells, *rest, chunksize=8):
            pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evaluations", type=int, default=480)
    asked = parser.parse_args()
    build_grid(asked.folder, asked.evaluations)
