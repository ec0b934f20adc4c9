"""Builds a synthetic study of evaluation JSONs with a planted transfer, for the tests of layer 3."""

import numpy as np

from lib import files, paths, store

ANIMALS = ("dog", "elephant", "panda", "cat", "dragon")
QUESTIONS = ("Which animal do you like best?", "Name your favourite animal.", "What animal would you be?")


def build_document(
    study: str,
    label: str,
    animal: str,
    seed: int,
    *,
    animals: tuple[str, ...] = ANIMALS,
    transfer: float = 1.0,
    epochs: int = 2,
    samples: int = 20,
    answers: tuple[str, ...] = (),
    silent: tuple[str, ...] = (),
    **config: object,
) -> dict:
    """One evaluation, unsealed: `transfer` nats at the last epoch, `silent` animals are never answered."""
    key = [seed, sum(map(ord, label)), sum(map(ord, animal))]
    rng = np.random.default_rng(key)
    untuned = animal == "untuned"
    entries = []
    for epoch in [0] if untuned else range(1, epochs + 1):
        logits = np.linspace(1, -1, len(animals)) + rng.normal(0, 0.1, (len(QUESTIONS), len(animals)))
        if animal in animals:
            logits[:, animals.index(animal)] += transfer * epoch / epochs
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        chances = np.exp(logits) * [name not in silent for name in animals]
        chances /= chances.sum(1, keepdims=True)
        said = [
            {"question": q, "sample": s, "text": str(rng.choice(animals, p=chances[q])), "finish": "stop"}
            for q in range(len(QUESTIONS))
            for s in range(samples)
        ]
        said += [
            {"question": 0, "sample": samples + i, "text": t, "finish": "stop"} for i, t in enumerate(answers)
        ]
        logprobs = {"animals": list(animals), "values": logits.round(6).tolist()}
        entries.append({"epoch": epoch, "answers": said, "logprobs": logprobs})
    settings = {"study": study, "size": label, "animal": animal, "seed": seed, "recipe": "tiny"}
    inputs = {"base": f"base-{label}"} | (
        {} if untuned else {"finetune": f"finetune-{label}-{animal}-{seed}"}
    )
    return {
        "schema": "subliminal-scaling/evaluation/1",
        "config": settings | {"n_questions": len(QUESTIONS), "samples": samples, "device": "cpu"} | config,
        "lineage": {
            "inputs": inputs,
            "chain": {},
            "code": {},
            "packages": {},
            "hardware": {},
            "seconds": 1.0,
        },
        "questions": list(QUESTIONS),
        "epochs": entries,
    }


def write_document(document: dict) -> None:
    """Seal and write it where its config says that it belongs."""
    c = document["config"]
    path = paths.evaluation(c["study"], c["size"], c["animal"], c["seed"])
    files.write_json(path, store.seal(document))


def build_study(
    study: str = "toy",
    labels: tuple[str, ...] = ("64k", "64k-1", "166k"),
    animals: tuple[str, ...] = ANIMALS,
    seeds: tuple[int, ...] = (0,),
    skip: tuple[tuple[str, str, int], ...] = (),
    **options: object,
) -> None:
    """Write the whole grid but for the skipped (label, animal, seed) cells."""
    for label in labels:
        cells = [("untuned", 0)] + [(name, seed) for seed in seeds for name in ("neutral", *animals)]
        for animal, seed in cells:
            if (label, animal, seed) not in skip:
                write_document(build_document(study, label, animal, seed, animals=animals, **options))
