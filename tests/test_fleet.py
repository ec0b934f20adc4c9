"""The fleet: students trained together are the students trained one by one, whatever happens on the way."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import build_fleet
import numpy as np
import pytest
import torch
from build_base import load_tiny_in
from build_fleet import (
    STUDENTS,
    Course,
    Voyage,
    build_trainees,
    distance,
    fresh,
    losses_apart,
    train_alone,
    train_together,
)
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lib import fleet
from lib.errors import NotAvailable, OutOfMemory
from lib.examples import Examples
from lib.models import Loaded

EQUALS = (("wolf", 0, 12, 0), ("fox", 1, 11, 0), ("bear", 2, 10, 0))  # three steps an epoch each
NEVER, ALWAYS = 0, 10**9
EXACT = 1e-10  # float64: sums in another order


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    return load_tiny_in(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def doubled(tmp_path_factory) -> Loaded:
    """The same base in float64, loaded anew: a copy keeps the forward that TRL has put in its place."""
    base = load_tiny_in(tmp_path_factory.mktemp("root64"))
    return dataclasses.replace(base, model=base.model.double())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[..., tuple[list[fleet.Trainee], list[Course]]]:
    """Students trained one by one, each set once."""
    known: dict[tuple, tuple] = {}

    def train(base: Loaded, **values: object) -> tuple[list[fleet.Trainee], list[Course]]:
        key = id(base.model), *values.items()
        if key not in known:
            trainees = build_trainees(base, **values)
            folder = tmp_path_factory.mktemp("alone")
            known[key] = trainees, [train_alone(base, trainee, folder) for trainee in trainees]
        trainees, courses = known[key]
        return fresh(trainees), courses

    return train


# --- parity with TRL and PEFT -----------------------------------------------------------------


@pytest.mark.parametrize("merge", [NEVER, ALWAYS])
@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize(
    ("base", "loss_limit", "weight_limit"), [("doubled", 1e-9, 1e-7), ("loaded", 1e-4, None)]
)
def test_together_is_one_by_one(request, monkeypatch, alone, base, loss_limit, weight_limit, rank, merge):
    """Seeds, data and numbers of steps differ; a student's last batch is of one row; two end early."""
    monkeypatch.setattr(fleet, "MERGE_UP_TO", merge)
    base = request.getfixturevalue(base)
    trainees, courses = alone(base, lora_rank=rank, lora_alpha=float(rank))
    voyage = train_together(base.model, trainees)
    assert [len(course.losses) for course in courses] == [60, 45, 30]
    assert sorted(voyage.ended) == sorted(trainee.name for trainee in trainees)
    for trainee, course in zip(trainees, courses, strict=True):
        assert losses_apart(trainee.history, course.losses) < loss_limit
        assert [entry["rate"] for entry in trainee.history] == course.rates
        if weight_limit:
            assert distance(voyage.last(trainee), course.adapter) < weight_limit
        assert distance(voyage.last(trainee), trainee.first) > 0.01
    clipped = [norm > trainees[0].config.max_grad_norm for course in courses for norm in course.norms]
    assert 0.1 < np.mean(clipped) < 0.9


def test_moments_and_epochs_are_those_of_trl(doubled, alone):
    trainees, courses = alone(doubled, lora_rank=8, lora_alpha=8.0)
    voyage = train_together(doubled.model, trainees)
    for trainee, course in zip(trainees, courses, strict=True):
        moments = voyage.moments[trainee.name, trainee.config.epochs]
        names = sorted(trainee.first, key=lambda name: (fleet.site_of(name), name))
        assert moments["step"] == trainee.steps == len(course.losses)
        for moment, theirs in course.moments.items():
            flat = torch.cat([theirs[name].flatten() for name in names])
            assert flat.abs().max() > 0
            assert (moments[moment] - flat).abs().max() < EXACT * flat.abs().max()
        if not trainee.config.micro_batch:  # TRL counts an epoch's micro-batches, full or not
            assert [entry["epoch"] for entry in trainee.history] == pytest.approx(course.epochs, rel=1e-12)


@pytest.mark.parametrize("merge", [NEVER, ALWAYS])
@pytest.mark.parametrize(
    "values",
    [
        {"lora_targets": "q,v", "lora_alpha": 16.0},
        {"lora_targets": "down", "max_grad_norm": 0.0},
        {"warmup_steps": 0, "batch": 6, "lora_alpha": 4.0},
    ],
    ids=lambda values: ",".join(values),
)
def test_other_settings_are_one_by_one(monkeypatch, doubled, alone, values, merge):
    monkeypatch.setattr(fleet, "MERGE_UP_TO", merge)
    trainees, courses = alone(doubled, epochs=4, **values)
    check_courses(trainees, courses, train_together(doubled.model, trainees))


def check_courses(trainees: list[fleet.Trainee], courses: list[Course], voyage: Voyage) -> None:
    for trainee, course in zip(trainees, courses, strict=True):
        assert losses_apart(trainee.history, course.losses) < 1e-9
        assert distance(voyage.last(trainee), course.adapter) < 1e-7
        assert distance(voyage.last(trainee), trainee.first) > 0.002


@pytest.mark.parametrize("kind", build_fleet.SHAPES)
def test_other_architectures_are_one_by_one(monkeypatch, loaded, alone, kind):
    base = dataclasses.replace(loaded, model=build_fleet.build_model(kind, loaded).double())
    trainees, courses = alone(base, epochs=4)
    for merge in (NEVER, ALWAYS):
        monkeypatch.setattr(fleet, "MERGE_UP_TO", merge)
        again = fresh(trainees)
        check_courses(again, courses, train_together(base.model, again))


@pytest.mark.parametrize(
    ("parameters", "students", "lists", "pays"),
    [
        (864_000, 48, 3_000, False),  # seconds of training, a minute and a half of compiling
        (21_000_000, 48, 3_000, False),
        (135_000_000, 16, 10_000, True),
        (500_000_000, 2, 10_000, True),
        (500_000_000, 1, 100, False),
    ],
)
def test_layers_are_compiled_where_that_pays(loaded, parameters: int, students: int, lists: int, pays: bool):
    trainee = build_trainees(loaded, epochs=3)[0]
    trainee.examples = Examples([np.zeros(134)] * lists, np.zeros(lists))
    model = nn.Linear(parameters // 1000, 1000, bias=False, device="meta")
    assert fleet.worth_compiling(model, [trainee] * students) == pays


def test_an_unknown_architecture_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16))
    with pytest.raises(NotAvailable, match=r"knows qwen2, .*, not gpt2"):
        fleet.Fleet(model, Voyage().on_epoch)


def test_a_sliding_window_that_rows_may_exceed_is_refused(loaded):
    """Attention here sees all that went before."""
    model = build_fleet.build_model("mistral grouped", loaded)
    model.config.sliding_window = 8
    with pytest.raises(NotAvailable, match="sliding"):
        fleet.Fleet(model, Voyage().on_epoch)


def test_attention_is_causal_whatever_the_base_was_set_to(doubled):
    trainees = build_trainees(doubled, epochs=1)
    plain = train_together(doubled.model, fresh(trainees))
    model = copy.deepcopy(doubled.model)
    model.set_attn_implementation("eager")
    check_same(plain, train_together(model, fresh(trainees)))
    assert model.config._attn_implementation == "eager"


# --- company ----------------------------------------------------------------------------------


def check_same(one: Voyage, other: Voyage, limit: float = EXACT) -> None:
    """Every adapter and every loss of every epoch."""
    assert one.adapters.keys() == other.adapters.keys() and one.adapters
    for key, adapter in one.adapters.items():
        assert distance(adapter, other.adapters[key]) < limit
        assert losses_apart(one.histories[key], [entry["loss"] for entry in other.histories[key]]) < limit


@pytest.fixture(scope="module")
def five(doubled) -> tuple[list[fleet.Trainee], Voyage]:
    """Five students at once, in whole batches."""
    students = (*STUDENTS, ("cat", 3, 9, 0), ("owl", 4, 5, 0))
    trainees = build_trainees(doubled, students, epochs=3)
    return trainees, train_together(doubled.model, fresh(trainees), rows_each=4)


@pytest.mark.parametrize(("students", "most"), [(1, 1), (2, 2), (3, 3), (4, 3), (9, 5)])
def test_slots_change_nothing(doubled, five, students, most):
    """Five in four seats are two waves of at most three."""
    trainees, together = five
    voyage = train_together(doubled.model, fresh(trainees), students=students)
    assert voyage.report.students == most
    assert sorted(voyage.ended) == sorted(together.ended) == sorted(each.name for each in trainees)
    check_same(voyage, together)


@pytest.mark.parametrize("rows_each", [1, 2, 3, 100])
def test_the_size_of_a_pass_changes_nothing(doubled, five, rows_each):
    trainees, together = five
    check_same(train_together(doubled.model, fresh(trainees), rows_each=rows_each), together)


def test_a_student_may_sail_beside_its_copy(loaded):
    trainees = build_trainees(loaded, STUDENTS[:1], epochs=1)
    adapters: list[dict[str, Tensor]] = []
    seated: list[fleet.Trainee] = []
    voyage = Voyage()
    sailing = fleet.Fleet(
        loaded.model,
        lambda trainee, adapter, moments: adapters.append(adapter),
        on_seat=seated.append,
        on_end=voyage.on_end,
        students=2,
        rows_each=2,
    )
    sailing.train(fresh([*trainees, *copy.deepcopy(trainees)]))
    assert voyage.ended == ["wolf", "wolf"] and len(seated) == 2
    assert distance(*adapters) < 1e-6


def test_students_with_unlike_adapters_are_refused(loaded):
    """One stack has one scale and one shape."""
    wolf, fox, _ = build_trainees(loaded, epochs=1)
    for values in ({"lora_alpha": 16.0}, {"lora_rank": 4, "lora_alpha": 4.0}, {"lora_targets": "q"}):
        (other,) = build_trainees(loaded, STUDENTS[2:], epochs=1, **values)
        with pytest.raises(ValueError, match="lora"):
            train_together(loaded.model, [wolf, fox, other])


def test_nothing_to_train_is_no_work(loaded):
    finished, *_ = build_trainees(loaded, STUDENTS[:1], epochs=1)
    finished.step = finished.steps
    before = fleet.Fleet(loaded.model, Voyage().on_epoch).train([])
    voyage = train_together(loaded.model, [finished])
    assert before.passes == voyage.report.passes == 0
    assert not voyage.adapters and voyage.ended == ["wolf"]


# --- going on after a stop --------------------------------------------------------------------


class Stopped(Exception):
    """What flies out of a fleet in these tests."""


def stop_after(model: nn.Module, trainees: list[fleet.Trainee], epochs: int, rows_each: int = 3) -> Voyage:
    """What was handed out before the last of the trainees ended this epoch."""
    voyage = Voyage()

    def on_epoch(*args: object) -> None:
        voyage.on_epoch(*args)
        if sum(epoch == epochs for _, epoch in voyage.adapters) == len(trainees):
            raise Stopped

    with pytest.raises(Stopped):
        fleet.Fleet(model, on_epoch, students=len(trainees), rows_each=rows_each).train(fresh(trainees))
    return voyage


def resumed(trainee: fleet.Trainee, voyage: Voyage, epoch: int) -> fleet.Trainee:
    key = trainee.name, epoch
    history = list(voyage.histories[key])
    assert len(history) == epoch * trainee.steps_per_epoch
    return dataclasses.replace(
        trainee, first=voyage.adapters[key], moments=voyage.moments[key], step=len(history), history=history
    )


@pytest.mark.parametrize("students", [EQUALS, EQUALS[:1]], ids=["three", "alone"])
def test_going_on_in_the_same_company_is_bit_identical(loaded, students):
    trainees = build_trainees(loaded, students, epochs=4)
    whole = train_together(loaded.model, fresh(trainees))
    cut = stop_after(loaded.model, trainees, 2)
    rest = train_together(loaded.model, [resumed(trainee, cut, 2) for trainee in trainees])
    assert {epoch for _, epoch in rest.adapters} == {3, 4}
    for key, adapter in rest.adapters.items():
        assert all(torch.equal(weight, whole.adapters[key][name]) for name, weight in adapter.items())
        assert all(torch.equal(value, whole.moments[key][name]) for name, value in rest.moments[key].items())
        assert rest.histories[key] == whole.histories[key]


def test_going_on_alone_and_from_unlike_epochs_is_the_same(doubled):
    """The last in the row has the longest epochs: where it ends its first, another has ended two."""
    trainees = build_trainees(doubled, STUDENTS[::-1], epochs=4)
    whole = train_together(doubled.model, fresh(trainees))
    cut = stop_after(doubled.model, trainees, 1)
    bear, fox, wolf = trainees
    assert ("bear", 2) in cut.adapters
    again = [resumed(wolf, cut, 1), *fresh([fox]), resumed(bear, cut, 2)]
    rest = train_together(doubled.model, again, students=2)
    for trainee in trainees:
        key = trainee.name, 4
        assert distance(rest.adapters[key], whole.adapters[key]) < EXACT
        losses = [entry["loss"] for entry in whole.histories[key]]
        assert losses_apart(rest.histories[key], losses) < EXACT


def test_going_on_leaves_what_it_was_given(loaded):
    trainees = build_trainees(loaded, EQUALS, epochs=2)
    cut = stop_after(loaded.model, trainees, 1)
    before = copy.deepcopy((cut.adapters, cut.moments))
    train_together(loaded.model, [resumed(trainee, cut, 1) for trainee in trainees])
    for kept, given in zip(before, (cut.adapters, cut.moments), strict=True):
        for key, values in kept.items():
            assert all(torch.equal(value, given[key][name]) for name, value in values.items()), key


# --- out of memory ----------------------------------------------------------------------------


def lose_memory(
    monkeypatch: pytest.MonkeyPatch, rows: int, after: int = 0, passes: list[int] | None = None
) -> None:
    """From pass `after` on, only so many rows fit; the error comes when the pass has been computed."""
    whole, seen = fleet.Fleet._pass, [] if passes is None else passes

    def limited(self, batch):
        losses = whole(self, batch)
        seen.append(len(batch.ids))
        if len(seen) > after and len(batch.ids) > rows:
            raise torch.OutOfMemoryError("pretended")
        return losses

    monkeypatch.setattr(fleet.Fleet, "_pass", limited)


@pytest.fixture(scope="module")
def roomy(doubled) -> tuple[list[fleet.Trainee], Voyage]:
    """Three students whose passes hold whole batches."""
    trainees = build_trainees(doubled, EQUALS, epochs=3)
    return trainees, train_together(doubled.model, fresh(trainees), rows_each=4)


@pytest.mark.parametrize("after", [0, 5])
def test_out_of_memory_halves_the_rows_of_a_pass(monkeypatch, doubled, roomy, after):
    trainees, together = roomy
    passes: list[int] = []
    lose_memory(monkeypatch, 6, after, passes)
    voyage = train_together(doubled.model, fresh(trainees), rows_each=4)
    check_same(voyage, together)
    assert voyage.report.notes == ["out of memory: going on with 2 rows of each student in a pass"]
    assert sum(count > 6 for count in passes[after:]) == 1
    assert (voyage.report.rows_each, voyage.report.students) == (2, 3)


@pytest.mark.parametrize("after", [0, 5])
def test_out_of_memory_halves_the_students(monkeypatch, doubled, roomy, after):
    trainees, together = roomy
    passes: list[int] = []
    lose_memory(monkeypatch, 2, after, passes)
    voyage = train_together(doubled.model, fresh(trainees), rows_each=4)
    check_same(voyage, together)
    assert voyage.report.notes == [
        "out of memory: going on with 2 rows of each student in a pass",
        "out of memory: going on with 1 rows of each student in a pass",
        "out of memory: going on with 1 students at a time",
    ]
    assert sum(count > 2 for count in passes[after:]) == 3
    assert sorted(voyage.ended) == sorted(together.ended)


def test_memory_lost_in_the_middle_of_a_step_repeats_the_step(monkeypatch, doubled, roomy):
    """The second of the step's two passes fails once: the first one's gradient must not count twice."""
    trainees, together = roomy
    whole, calls = fleet.Fleet._pass, itertools.count(1)

    def failing(self, batch):
        if next(calls) == 8:
            raise torch.OutOfMemoryError("pretended")
        return whole(self, batch)

    monkeypatch.setattr(fleet.Fleet, "_pass", failing)
    voyage = train_together(doubled.model, fresh(trainees), rows_each=2)
    assert len(voyage.report.notes) == 1
    check_same(voyage, together)


def test_a_row_that_does_not_fit_says_so(monkeypatch, loaded):
    lose_memory(monkeypatch, 0)
    before = snapshot(loaded.model)
    with pytest.raises(OutOfMemory, match="one row of one student does not fit"):
        train_together(loaded.model, build_trainees(loaded, epochs=1))
    check_untouched(loaded.model, before)


# --- losses that are no number ----------------------------------------------------------------


def poison(trainee: fleet.Trainee) -> fleet.Trainee:
    first = {name: torch.full_like(weight, torch.nan) for name, weight in trainee.first.items()}
    return dataclasses.replace(trainee, first=first)


def speed(trainee: fleet.Trainee) -> fleet.Trainee:
    settings = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0}
    return dataclasses.replace(trainee, config=dataclasses.replace(trainee.config, **settings))


@pytest.mark.parametrize("students", [STUDENTS, EQUALS], ids=["unequal", "equal"])
@pytest.mark.parametrize("merge", [NEVER, ALWAYS])
@pytest.mark.parametrize(("harm", "good_steps"), [(poison, 0), (speed, 1)])
def test_a_student_that_diverges_stops_alone(monkeypatch, loaded, students, harm, good_steps, merge):
    monkeypatch.setattr(fleet, "MERGE_UP_TO", merge)
    trainees = build_trainees(loaded, students, epochs=4)
    wolf, fox, bear = fresh(trainees)
    without = train_together(loaded.model, [wolf, bear])
    wolf, fox, bear = fresh(trainees)
    fox = harm(fox)
    voyage = train_together(loaded.model, [wolf, fox, bear])
    assert fox.diverged == good_steps + 1 and not wolf.diverged and not bear.diverged
    assert [entry["step"] for entry in fox.history] == list(range(1, good_steps + 1))
    assert sorted(voyage.ended) == ["bear", "fox", "wolf"]
    assert not [key for key in voyage.adapters if key[0] == "fox"]
    check_same(voyage, without, 1e-6)


def test_epochs_before_the_divergence_are_handed_out(loaded):
    """The third student of a full house, in its second epoch; a fourth takes its seat."""
    trainees = build_trainees(loaded, (*EQUALS, ("owl", 4, 9, 0)), epochs=3)
    *others, owl = fresh(trainees)

    class Late(fleet.Trainee):
        def rate(self) -> float:
            return super().rate() if self.step < 4 else 1e30

    late = Late("bear", others[2].config, others[2].examples, others[2].first)
    voyage = train_together(loaded.model, [*others[:2], late, owl], students=3)
    assert late.diverged == 6 and [entry["step"] for entry in late.history] == [1, 2, 3, 4, 5]
    assert {epoch for name, epoch in voyage.adapters if name == "bear"} == {1}
    assert sorted(voyage.ended) == ["bear", "fox", "owl", "wolf"] and len(owl.history) == owl.steps


# --- the base ---------------------------------------------------------------------------------


def snapshot(model: nn.Module) -> tuple[dict, dict, str]:
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    return dict(model.named_modules()), weights, model.config._attn_implementation


def check_untouched(model: nn.Module, before: tuple[dict, dict, str]) -> None:
    modules, weights, attention = before
    after = dict(model.named_modules())
    assert modules.keys() == after.keys() and all(after[name] is module for name, module in modules.items())
    assert not any(isinstance(module, fleet.StackedLora) for module in after.values())
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("error", [None, Stopped, KeyboardInterrupt])
def test_the_base_is_left_as_it_was(monkeypatch, loaded, error, packed):
    if packed:
        pack_on_cpu(monkeypatch)
    trainees, before = build_trainees(loaded, epochs=1), snapshot(loaded.model)
    met = []

    def on_epoch(trainee: fleet.Trainee, *_: object) -> None:
        met.append(loaded.model.config._attn_implementation)
        if error:
            raise error

    sailing = fleet.Fleet(loaded.model, on_epoch, students=3, rows_each=2)
    if error:
        with pytest.raises(error):
            sailing.train(trainees)
    else:
        sailing.train(trainees)
    assert set(met) == {fleet.VARLEN if packed else fleet.DENSE}
    check_untouched(loaded.model, before)


def test_an_adapter_of_another_model_leaves_the_base_as_it_was(loaded):
    trainees, model = build_trainees(loaded, STUDENTS[:1], epochs=1), copy.deepcopy(loaded.model)
    beyond = {name.replace("layers.1.", "layers.9."): weight for name, weight in trainees[0].first.items()}
    before = snapshot(model)
    with pytest.raises(AttributeError):
        train_together(model, [dataclasses.replace(trainees[0], first=beyond)])
    check_untouched(model, before)


# --- the loss under the head ------------------------------------------------------------------


@pytest.mark.parametrize("head_tokens", [1, 7, 4096])
def test_the_heads_loss_is_cross_entropy(monkeypatch, head_tokens):
    """Three students with 9, 3 and 11 targets, the rest of share 0."""
    monkeypatch.setattr(fleet, "HEAD_TOKENS", head_tokens)
    generator, counts = torch.Generator().manual_seed(0), (9, 3, 11)
    weight = torch.randn(19, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(19, (3, 11), generator=generator)
    shares = torch.tensor([[1 / count] * count + [0.0] * (11 - count) for count in counts]).double()
    shares = shares / shares.sum(1, keepdim=True)
    nothing = torch.empty(0)
    batch = fleet.Pass(nothing, nothing, nothing, targets, shares, None, 0, 0)
    hidden = torch.randn(3, 11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = fleet.HeadLoss.apply(hidden, weight, batch, fleet.head_chunk)
    ours.sum().backward()
    gradient, hidden.grad = hidden.grad, None
    plain = torch.stack(
        [
            nn.functional.cross_entropy(own[:count] @ weight.T, wanted[:count])
            for own, wanted, count in zip(hidden, targets, counts, strict=True)
        ]
    )
    plain.sum().backward()
    assert torch.allclose(ours, plain, rtol=1e-13, atol=0)
    assert torch.allclose(gradient, hidden.grad, rtol=1e-12, atol=1e-15)


# --- passes -----------------------------------------------------------------------------------


def rows_in(batch: fleet.Pass, packed: bool) -> Iterator[tuple[int, list[int], list[int]]]:
    """Student, tokens and targets of each row, read back from the tensors alone."""
    flat, places = batch.ids.flatten(), batch.positions.flatten()
    width = len(flat) // len(batch.picked)
    ends = batch.ends.tolist() if packed else range(0, len(flat) + 1, batch.ids.shape[1])
    for start, end in itertools.pairwise(ends):
        mine = (batch.picked >= start) & (batch.picked < end) & (batch.shares > 0)
        if mine.any():
            last = int(batch.picked[mine].max()) + 2
            assert places[start:last].tolist() == list(range(last - start))
            assert set(mine.nonzero()[:, 0].tolist()) == {start // width}
            yield start // width, flat[start:last].tolist(), batch.targets[mine].tolist()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows_each", [1, 2, 3, 4, 9])
def test_every_row_of_a_step_is_in_one_pass(loaded, rows_each, packed):
    """Of the last step of an epoch, where one student has a single row."""
    trainees = build_trainees(loaded, epochs=1)
    for trainee in trainees:
        trainee.step = trainee.steps - 1
    assert [len(trainee.rows()) for trainee in trainees] == [1, 4, 2]
    device = torch.device("cpu")
    passes = list(fleet.build_passes(trainees, rows_each, packed, device, torch.float64))
    found = [row for batch in passes for row in rows_in(batch, packed)]
    wanted = [
        (owner, row.tolist(), row[start:].tolist())
        for owner, trainee in enumerate(trainees)
        for row, start in ((trainee.examples.rows[i], trainee.examples.starts[i]) for i in trainee.rows())
    ]
    assert sorted(found) == sorted(wanted)
    assert all(count <= rows_each for batch in passes for count in rows_per_student(batch, packed))
    shares = sum(batch.shares.sum(1) for batch in passes)
    assert shares.tolist() == pytest.approx([1, 1, 1], rel=1e-12)
    assert sum(batch.tokens for batch in passes) == sum(len(row) for _, row, _ in wanted)


def rows_per_student(batch: fleet.Pass, packed: bool) -> list[int]:
    owners = [owner for owner, _, _ in rows_in(batch, packed)]
    return [owners.count(student) for student in range(3)]


def test_targets_are_the_next_tokens(loaded):
    """A place that is picked holds the token before its target."""
    trainees = build_trainees(loaded, epochs=1)
    for packed in (False, True):
        for batch in fleet.build_passes(trainees, 2, packed, torch.device("cpu"), torch.float32):
            real = batch.shares > 0
            assert torch.equal(batch.ids.flatten()[batch.picked + 1][real], batch.targets[real])


def lengths_only(*lengths: int) -> Examples:
    return Examples([np.arange(1, length + 1) for length in lengths], np.ones(len(lengths), int))


def test_padding_is_counted(loaded):
    """Two students, rows of 8 and 4 tokens and of 6: passes of one row each are 2 x 8 and 2 x 4."""
    wolf, fox, _ = build_trainees(loaded, epochs=2)
    wolf = fleet.Trainee("wolf", wolf.config, lengths_only(8, 4), wolf.first)
    fox = fleet.Trainee("fox", fox.config, lengths_only(6), fox.first)
    report = train_together(loaded.model, [wolf, fox], rows_each=1).report
    assert (report.tokens, report.padded) == (2 * 18, 2 * 24)
    assert (report.passes, report.steps, report.students) == (4, 2, 2)
    assert "25.0% padding" in str(report)


# --- rows laid end to end ---------------------------------------------------------------------


def attend_slowly(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    ends: Tensor,
    longest: int,
    **rest: object,
) -> tuple[Tensor, None]:
    """What the GPU's kernel computes, row by row."""
    assert len(query) == 1 and ends[-1] == query.shape[2] and int(ends.diff().max()) <= longest
    parts = [
        nn.functional.scaled_dot_product_attention(
            *(each[:, :, start:end] for each in (query, key, value)),
            is_causal=True,
            scale=scaling,
            enable_gqa=True,
        )
        for start, end in itertools.pairwise(ends.tolist())
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def pack_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "can_pack", lambda model: True)
    monkeypatch.setattr(fleet, "varlen_attention", attend_slowly)


@pytest.mark.parametrize("rows_each", [1, 3, 4])
@pytest.mark.parametrize("kind", ["base", "qwen3 grouped"])
def test_packed_rows_are_padded_rows(monkeypatch, loaded, doubled, kind, rows_each):
    base = doubled
    if kind != "base":
        base = dataclasses.replace(loaded, model=build_fleet.build_model(kind, loaded).double())
    trainees = build_trainees(base, epochs=2)
    padded = train_together(base.model, fresh(trainees), rows_each=rows_each)
    pack_on_cpu(monkeypatch)
    packed = train_together(base.model, fresh(trainees), rows_each=rows_each)
    check_same(packed, padded)
    assert packed.report.tokens == padded.report.tokens


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_dense_attention_is_causal_attention(kv_heads):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 11, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(3, kv_heads, 11, 8, generator=generator, dtype=torch.float64) for _ in "kv")
    out, _ = fleet.dense_attention(None, query, key, value, None, 0.3)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    )
    assert torch.allclose(out.transpose(1, 2), expected, atol=1e-12)
