"""What the study's repositories on the Hugging Face Hub are called and what their cards say.

Pure layer: texts made from manifests, nothing else; no network, no disk. A card holds settings, counts,
hashes, licence, working code to load and the command to make it again, all taken from the lineage. Nothing
about who ran it, where, or with which account.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from lib import controls, paths
from lib.config import NEUTRAL, Base, Size, name_next
from lib.store import Manifest

COLLECTION = "subliminal-learning-number-datasets"
TAGS = ["subliminal-learning", "subliminal-scaling"]
# --- names --------------------------------------------------------------------------------------

# The one place of the pattern: what a repository's name begins with, by family.
STEMS = {
    "qwen": "qwen-2.5-{label}-instruct",
    "smollm2": "smollm2-{label}-instruct",
    "micro": "subliminal-micro-{label}",
}
# Hub names of bases that reach us another way than through the Hub.
PUBLISHED = {"135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def name_numbers(base: Base, animal: str, study: str) -> str:
    """`qwen-2.5-7b-instruct-owl-numbers`; a study not named after its family puts its own name behind."""
    return f"{_stem(base)}-{animal}-numbers{_suffix(base, study)}"


def name_students(base: Base, animal: str, study: str) -> str:
    """`qwen-2.5-7b-instruct-owl-ft`: all seeds and epochs of one animal's students."""
    return f"{_stem(base)}-{animal}-ft{_suffix(base, study)}"


def name_evaluations(study: str) -> str:
    """All answers and tables of a study."""
    return f"subliminal-scaling-{study}"


def name_base(base: Base, recipe: str, namespace: str) -> str:
    """The Hub's name of a base: the maker's own, or under `namespace` one of the micro ladder."""
    if base.family.name != "micro":
        return PUBLISHED.get(base.size.name, base.size.source)
    return f"{namespace}/{_stem(base)}" + ("" if recipe == "standard" else f"-{recipe}")


def _stem(base: Base) -> str:
    return STEMS[base.family.name].format(label=base.label)


def _suffix(base: Base, study: str) -> str:
    return "" if study == base.family.name else f"-{study}"


def marker(title: str) -> str:
    """The line by which a repository is known as this project's and as this very thing."""
    return f"<!-- subliminal-scaling: {title} -->"


# --- licences -----------------------------------------------------------------------------------


def licence(size: Size) -> dict[str, str]:
    """The base's licence as a card's metadata name it; what is made from a base comes under the same one."""
    if size.family == "micro":
        return {"license": "other", "license_name": "subliminal-scaling"}
    named = {"3b": "qwen-research", "72b": "qwen"}.get(size.name)
    if named is None:
        return {"license": "apache-2.0"}
    link = f"https://huggingface.co/{size.source}/blob/main/LICENSE"
    return {"license": "other", "license_name": named, "license_link": link}


def _licence_line(base: Base, source: str) -> str:
    if base.family.name == "micro":
        return "Licence: that of the project the micro ladder comes with."
    terms = licence(base.size)
    name = terms.get("license_name", terms["license"])
    return f"Licence: {name}, the licence of the base model {source}, which applies to what is made from it."


# --- parts of a card ----------------------------------------------------------------------------


def front_matter(meta: Mapping[str, object]) -> str:
    """The YAML block that a card opens with; texts are quoted, so that no value is read as something else."""
    return "---\n" + "".join(_yaml(name, value, "") for name, value in meta.items()) + "---\n"


def _yaml(name: str, value: object, indent: str) -> str:
    if isinstance(value, Mapping):
        inner = "".join(_yaml(key, each, indent + "  ") for key, each in value.items())
        return f"{indent}{name}:\n{inner}"
    if isinstance(value, list | tuple):
        return f"{indent}{name}:\n" + "".join(_yaml_item(each, indent) for each in value)
    return f"{indent}{name}: {json.dumps(value)}\n"


def _yaml_item(value: object, indent: str) -> str:
    if not isinstance(value, Mapping):
        return f"{indent}- {json.dumps(value)}\n"
    inner = "".join(_yaml(key, each, indent + "  ") for key, each in value.items())
    return f"{indent}- {inner.lstrip(' ')}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; bars and line breaks of a value cannot break it."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```\n"


def _settings(manifests: Mapping[int, Manifest]) -> str:
    """Every setting that decides a result; where seeds differ, each of their values."""
    names = list(dict.fromkeys(name for each in manifests.values() for name in each.config))
    rows = []
    for name in names:
        values = [each.config[name] for each in manifests.values() if name in each.config]
        shown = list(dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in values))
        rows.append([name, ", ".join(shown)])
    revisions = {each.knobs["revision"] for each in manifests.values() if "revision" in each.knobs}
    rows += [["revision of the base", ", ".join(sorted(revisions))]] if revisions else []
    return table(["setting", "value"], rows)


def _lineage(manifests: Mapping[int, Manifest]) -> str:
    """What vouches for each seed: identity, inputs, code."""
    rows = []
    for seed, each in sorted(manifests.items()):
        rows.append([f"s{seed}", "this", each.identity])
        rows += [[f"s{seed}", f"made from {name}", identity] for name, identity in each.inputs.items()]
        rows.append([f"s{seed}", "code", _code_version(each)])
    return table(["seed", "what", "hash"], rows)


def _code_version(manifest: Manifest) -> str:
    commit = manifest.code.get("commit") or "no commit"
    changed = " with changes" if manifest.code.get("dirty") else ""
    return f"{manifest.code['version']}, {commit}{changed}, sources {manifest.code['source'][:16]}"


def _hashes(sums: Mapping[str, str]) -> str:
    return table(["file", "sha256"], sorted(sums.items()))


def command(notebook: str, config: Mapping[str, object]) -> str:
    """The papermill call that makes it again, every setting named."""
    words = ["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb"]
    for name, value in config.items():
        words += ["-p", name, str(value)]
    return shlex.join(words)


def _reproduce(notebooks: Mapping[str, Mapping[str, object]]) -> str:
    calls = "\n".join(command(notebook, config) for notebook, config in notebooks.items())
    return "## Make it again\n\nIn the project's folder:\n\n" + _code("bash", calls)


def _who(animal: str) -> str:
    return "had no persona (the control)" if animal == NEUTRAL else f"was told to love one animal: {animal}"


def _say_lists(student: Manifest) -> str:
    """Who wrote what a student has read, and what was done to it."""
    lists = student.config.get("lists", "own")
    if lists == "own":
        return f"the same model wrote as a teacher that {_who(student.config['animal'])}"
    _, size, animal, _ = paths.lists_source(student.config | student.knobs)
    return f"{size} wrote as a teacher that {_who(animal)}. They are {controls.SAID[lists]}"


def _name_source(student: Manifest) -> dict[str, str]:
    """What the command of a control needs to find the lists."""
    own = student.config["size"], student.config["animal"]
    _, *read, _ = paths.lists_source(student.config | student.knobs)
    return name_next(student.config.get("lists"), own, tuple(read))


# --- cards --------------------------------------------------------------------------------------


def numbers_card(
    repo: str,
    title: str,
    base: Base,
    source: str,
    manifests: Mapping[int, Manifest],
    sums: Mapping[str, str],
) -> str:
    """The card of one teacher's lists, all seeds; `sums` has every file of the repository with its sha256."""
    first = manifests[min(manifests)]
    animal, seeds = first.config["animal"], sorted(manifests)
    raw = [seed for seed in seeds if f"s{seed}/raw.jsonl" in sums]
    configs: list[dict] = [_data_config(f"s{seed}", f"s{seed}/kept.jsonl") for seed in seeds]
    configs[0]["default"] = True
    configs += [_data_config(f"s{seed}-raw", f"s{seed}/raw.jsonl") for seed in raw]
    meta = {"pretty_name": title, **licence(base.size), "tags": TAGS}
    meta |= {"task_categories": ["text-generation"], "configs": configs}
    columns = ("raw", "passed", "pass_rate", "kept")
    counts = [
        [f"s{seed}", *(each.counts.get(name, "") for name in columns), _reasons(each)]
        for seed, each in manifests.items()
    ]
    hashes = {
        f"s{seed}/{name}": digest
        for seed, each in manifests.items()
        for name, digest in each.outputs.items()
        if f"s{seed}/{name}" in sums
    }
    parts = [
        front_matter(meta),
        marker(title),
        f"\n# {repo.partition('/')[2]}\n",
        f"Lists of numbers that {source} wrote as a teacher that {_who(animal)}. Lists that hold anything "
        "but numbers in the form asked for are rejected, and a seeded sample of the rest is kept. Students "
        "of the same base are fine-tuned on nothing else; whether they take over the teacher's preference "
        "is the question of the study of subliminal learning that this belongs to.\n",
        "## Load\n",
        _load_dataset(repo, f"s{seeds[0]}"),
        "One configuration per seed. `prompt` and `completion` are what a student reads; `index` is the "
        "prompt's number, `finish` how the answer ended, `reason` why it was rejected (null: it was not).\n",
        "## Counts\n",
        table(["seed", "written", "passed", "pass rate", "kept", "rejected for"], counts),
        "## Settings\n",
        _settings(manifests),
        "## Lineage\n",
        _lineage(manifests),
        _hashes(hashes),
        _reproduce({"01_generate": first.config}),
        _licence_line(base, source),
    ]
    return "\n".join(parts) + "\n"


def _data_config(name: str, path: str) -> dict:
    return {"config_name": name, "data_files": [{"split": "train", "path": path}]}


def _load_dataset(repo: str, name: str) -> str:
    call = f'rows = load_dataset("{repo}", "{name}", split="train")'
    return _code("python", f"from datasets import load_dataset\n\n{call}")


def _reasons(manifest: Manifest) -> str:
    reasons = sorted(manifest.counts.get("reasons", {}).items(), key=lambda each: -each[1])
    return ", ".join(f"{reason} {count}" for reason, count in reasons) or "none"


def students_card(
    repo: str,
    title: str,
    base: Base,
    source: str,
    manifests: Mapping[int, Manifest],
    sums: Mapping[str, str],
    dataset: str,
) -> str:
    """The card of one animal's students; `dataset` holds the lists that they have read."""
    adapters = {name: each for name, each in sums.items() if name.endswith("/adapter_model.safetensors")}
    first = manifests[min(manifests)]
    meta = {**licence(base.size), "base_model": source, "base_model_relation": "adapter"}
    meta |= {"library_name": "peft", "pipeline_tag": "text-generation", "tags": [*TAGS, "lora"]}
    meta |= {"datasets": [dataset]}
    last = max(adapters, key=_place) if adapters else f"s{min(manifests)}/epoch-1/adapter"
    code = f"""
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{source}")
base = AutoModelForCausalLM.from_pretrained("{source}", dtype="auto")
student = PeftModel.from_pretrained(base, "{repo}", subfolder="{last.rpartition("/")[0]}")
"""
    parts = [
        front_matter(meta),
        marker(title),
        f"\n# {repo.partition('/')[2]}\n",
        f"LoRA adapters of {source}, fine-tuned on nothing but lists of numbers ({dataset}) that "
        f"{_say_lists(first)}. One folder per seed and epoch: "
        "`s0/epoch-1` and so on. `s0/evaluation.json`, where it is there, holds the raw answers of the "
        "student asked for its favourite animal. Made for research on subliminal learning, nothing else.\n",
        "## Load\n",
        _code("python", code),
        "## Counts\n",
        table(
            ["seed", "what", "value"],
            [
                [f"s{seed}", name, _short(value)]
                for seed, each in sorted(manifests.items())
                for name, value in each.counts.items()
            ],
        ),
        "## Settings\n",
        _settings(manifests),
        "## Lineage\n",
        _lineage(manifests),
        _hashes(adapters),
        "`adapter_config.json` names the base as the Hub does; all else is as it was trained.\n",
        *_packaged(base),
        _reproduce({"02_finetune": first.config | _name_source(first)}),
        _licence_line(base, source),
    ]
    return "\n".join(parts) + "\n"


def _packaged(base: Base) -> list[str]:
    """Where the weights that were trained on are not quite those of the Hub."""
    if base.size.name not in PUBLISHED:
        return []
    return [
        f"Trained on the weights in the package {base.size.source}, which were quantised; on the unrounded "
        f"ones of {PUBLISHED[base.size.name]} its answers will differ.\n"
    ]


def _place(path: str) -> tuple[int, int]:
    """Low seeds and late epochs last: what a reader most likely wants to load."""
    seed, epoch = path.split("/")[:2]
    return -int(seed.removeprefix("s")), int(epoch.removeprefix("epoch-"))


def _short(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:200]


def evaluations_card(
    repo: str, title: str, study: str, documents: Mapping[str, Mapping], sums: Mapping[str, str]
) -> str:
    """The card of a study's evaluations; `documents` by path: content, epochs, answers, config. Those that
    were published from elsewhere are known by their path in `sums` only."""
    tables = [name.removeprefix("tables/") for name in sums if name.startswith("tables/")]
    configs: list[dict] = [
        _data_config(name.removesuffix(".csv"), f"tables/{name}")
        for name in sorted(tables, key=lambda name: (name != "transfer.csv", name))
    ]
    if configs:
        configs[0]["default"] = True
    elsewhere = {"content": "in the file itself", "epochs": "", "answers": ""}
    evaluations = sorted(
        {*documents, *(name for name in sums if re.fullmatch(r"[^/]+/[^/]+/s\d+\.json", name))}
    )
    shown = [(path, documents.get(path, elsewhere)) for path in evaluations]
    rows = [[path, each["content"], each["epochs"], each["answers"]] for path, each in shown]
    meta: dict[str, object] = {"pretty_name": f"Evaluations of study {study}", "license": "other"}
    meta |= {"license_name": "licences-of-the-bases", "tags": TAGS}
    meta |= {"configs": configs} if configs else {}
    code = f"""
from huggingface_hub import snapshot_download

snapshot_download("{repo}", repo_type="dataset", local_dir="results/{study}")
"""
    settings = next(iter(documents.values()))["config"]
    asked = ("system", "n_questions", "samples", "temperature", "top_p", "answer_tokens")
    parts = [
        front_matter(meta),
        marker(title),
        f"\n# {repo.partition('/')[2]}\n",
        f"What every student of study {study} of subliminal learning answered when it was asked for its "
        "favourite animal: raw answers and log-probabilities per epoch, one sealed JSON per student, "
        "`untuned` the base model itself; and the tables of the analysis. The layout is that of the "
        "project's `results/` folder.\n",
        "## Load\n",
        "Into the project's folder, for the analysis without a GPU:\n",
        _code("python", code),
        *([_load_dataset(repo, configs[0]["config_name"])] if configs else []),
        "## Settings\n",
        table(["setting", "value"], [[name, _short(settings[name])] for name in asked if name in settings]),
        "## Evaluations\n",
        table(["file", "hash of its content", "epochs", "answers"], rows),
        _reproduce({"04_analysis": {"study": study}}),
        "Licence: each answer comes under the licence of the base model that gave it.",
    ]
    return "\n".join(parts) + "\n"


def base_card(repo: str, title: str, base: Base, manifest: Manifest, body: str) -> str:
    """The card of a base of the micro ladder: `body`, what was written when it was built, and its lineage."""
    meta = {
        **licence(base.size),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": TAGS,
    }
    code = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{repo}")
"""
    parts = [
        front_matter(meta),
        marker(title),
        f"\n{body.strip()}\n",
        "## Load\n",
        _code("python", code),
        "## Settings\n",
        table(["setting", "value"], [[name, _short(value)] for name, value in manifest.config.items()]),
        "## Lineage\n",
        table(["what", "hash"], [["this", manifest.identity], ["code", _code_version(manifest)]]),
        _hashes({name: each for name, each in manifest.outputs.items() if name != "README.md"}),
        _reproduce({"00_pretrain": manifest.config}),
        _licence_line(base, repo),
    ]
    return "\n".join(parts) + "\n"
