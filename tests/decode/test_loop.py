"""The loop on scripted models: what is asked, checked, rolled back and counted."""

import torch
from transformers import LogitsProcessorList

from hippo.decode import Answer, AutoSchedule, Mode, Schedule, StopRule, Verdict, Verifier, alone, decode
from hippo.decode.loop import propose, take
from hippo.draft import Proposal
from hippo.params import SamplingParams
from hippo.stats import Stats

TEXT = [4, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]  # what the target says


class Draft:
    """Stands for a Drafter that drafts `text` at once, or is not ready, or is lost."""

    def __init__(self, text=(), ready=True, lost=False):
        self.text, self.ready, self.lost = list(text), lambda: ready, lost
        self.asked, self.at, self.commits = 0, 0, []

    @property
    def waiting(self):
        return self.asked

    def propose(self, count):
        self.asked += max(0, count)

    def peek(self):
        return Proposal(self.text[self.at], 0.9) if self.asked and self.at < len(self.text) else None

    def take(self, count):
        taken = []
        while len(taken) < count and (proposal := self.peek()):
            self.asked, self.at = self.asked - 1, self.at + 1
            taken.append(proposal)
        return taken

    def commit(self, length, tokens):
        self.asked, self.at = 0, length + len(tokens)
        self.commits.append((length, tokens))


class Target:
    """Says TEXT, whatever it is fed; remembers the widths of its forwards and its rollbacks."""

    def __init__(self, text=TEXT):
        self.text, self.length, self.widths, self.fed, self.seconds = text, 0, [], [], 0.01
        self.width = self.longest = self.widest = 0

    def extend(self, ids):
        start = self.length + 1
        self.fed[self.length :] = ids
        self.length += len(ids)
        self.width = self.longest = len(ids)
        self.widths.append(self.width)
        rows = [self.text[place] if place < len(self.text) else 0 for place in range(start, start + len(ids))]
        return torch.nn.functional.one_hot(torch.tensor(rows), 8).float()

    def rollback(self, count):
        self.length -= count


def run(drafter, decoder="parallel", gamma=3, length=12, eos=(), share=lambda beside: None, schedule=None):
    stats, target = Stats(), Target()
    verifier = Verifier(SamplingParams(), LogitsProcessorList(), torch.tensor([1]))
    answer = Answer(verifier, StopRule(eos, length), stats)
    answer.commit(Verdict([], TEXT[0], False))
    drafter.at = 1
    schedule = schedule or Schedule(decoder, gamma)
    rounds = list(alone(decode(answer, target, drafter, schedule, stats, share), target.extend))
    assert (
        answer.tokens == TEXT[: len(answer.tokens)]
        and [token for each in rounds for token in each] == answer.tokens[1:]
    )
    assert target.fed[: len(answer.tokens) - 1] == answer.tokens[:-1], "what the target has read is the answer"
    return rounds, target, stats


def test_a_right_draft_in_turns():
    rounds, target, stats = run(Draft(TEXT), "serial")
    assert rounds == [[1, 2, 3, 1], [2, 3, 1, 2], [3, 1, 2]] and target.widths == [4, 4, 4]
    assert (stats.checked, stats.accepted, stats.rejections, stats.draft_rounds) == (9, 9, 0, 3)


def test_a_right_draft_in_parallel_is_pre_verified_then_post_verified():
    rounds, target, _ = run(Draft(TEXT))
    assert rounds[0] == [1], "pre-verify checks the first drafted token only"
    assert rounds[1] == [2, 3, 1] and target.widths[:2] == [1, 3], "post-verify checks two pending and one new token"


def test_a_rejection_rolls_both_back_and_pre_verifies_again():
    wrong = [*TEXT[:5], 7, *TEXT[6:]]
    drafter = Draft(wrong)
    rounds, target, stats = run(drafter)
    assert rounds[:3] == [[1], [2, 3, 1], [2]], "the third round's first token is wrong: the target's own follows"
    assert drafter.commits[0] == (5, [2]) and target.widths[3] == 1
    assert stats.rejections == 1


def test_a_draft_that_is_always_wrong_and_no_draft_at_all():
    for drafter in (Draft([7] * 20), Draft(ready=False), Draft(ready=False, lost=True)):
        for decoder in ("serial", "parallel", "ar"):
            rounds, _, stats = run(drafter, decoder)
            assert rounds == [[token] for token in TEXT[1:]] and stats.accepted == 0


def test_a_draft_that_ends_in_mid_window():
    assert run(Draft(TEXT[:3]), "serial")[0][0] == [1, 2, 3]


def test_eos_and_length_inside_a_window():
    assert run(Draft(TEXT), "serial", eos=[3])[0] == [[1, 2, 3]]
    assert run(Draft(TEXT), "serial", length=6)[0] == [[1, 2, 3, 1], [2]]


def test_what_the_stop_rule_cuts_off_is_not_counted():
    stats = Stats()
    answer = Answer(Verifier(SamplingParams(), LogitsProcessorList(), torch.tensor([1])), StopRule([2], 100), stats)
    assert answer.commit(Verdict([1, 2, 3, 5], 6, True)) == [1, 2] and answer.finish == "eos"
    assert (stats.checked, stats.accepted, stats.rejections) == (2, 2, 0)


def test_no_more_is_drafted_or_checked_than_the_answer_may_hold():
    answer = Answer(Verifier(SamplingParams(), LogitsProcessorList(), torch.tensor([1])), StopRule([], 4), Stats())
    answer.commit(Verdict([], 4, False))
    drafter, schedule = Draft([1] * 20), Schedule("serial", 9)
    schedule.begin_round()
    propose(answer, drafter, schedule)
    assert drafter.waiting == 3 == len(take(answer, drafter, schedule, Mode.IN_TURNS))


def test_forwards_beside_a_draft_that_still_reads_are_not_those_of_the_target_alone():
    for drafter, measured in ((Draft(ready=False), False), (Draft(ready=False, lost=True), True)):
        schedule = AutoSchedule(True)
        run(drafter, schedule=schedule)
        assert bool(schedule.costs.forwards(1, both=False)) is measured


def test_after_a_draft_is_lost_its_schedule_says_that_nothing_is_drafted():
    schedule, drafter, rounds = Schedule("serial", 3), Draft(TEXT), []

    def lose(beside):
        rounds.append((schedule.mode, schedule.drafted))
        if len(rounds) == 2:
            drafter.lost, drafter.ready = True, lambda: False

    run(drafter, schedule=schedule, share=lose)
    assert rounds[1] == (Mode.IN_TURNS, 3) and len(rounds) > 3
    assert schedule.mode is Mode.PLAIN and not schedule.drafted and not schedule.waking


def test_cores_are_shared_while_both_work():
    for drafter, expected in ((Draft(TEXT), True), (Draft(ready=False), True), (Draft(ready=False, lost=True), False)):
        told = []
        run(drafter, share=told.append)
        assert set(told) == {expected}
    run(Draft(TEXT), "serial", share=told.append)
    assert told[-1] is False, "in turns, the target has them all"
