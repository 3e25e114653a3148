"""What a served policy is shown, what it answers, and which requests it refuses."""

import logging

import msgpack
import numpy as np
import pytest
import torch
from openpi_client import msgpack_numpy

from pipeline.errors import RequestError
from pipeline.rollout.serve.session import Session, Turn, answer_together
from pipeline.rollout.serve.wire import decode_message
from policy.images import resize_images
from tests.pipeline.rollout.pixel_encoder import PixelEncoder
from tests.pipeline.rollout.serve.served import (
    FIRST_SEED,
    assert_acts,
    expected_actions,
    frame,
    observation,
    served_policy,
    state,
)


class PlacedEncoder(PixelEncoder):
    """Adds an image's place in its pass."""

    def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = super()._forward(images)["pooled"]
        return {"pooled": pooled + torch.arange(len(images))[:, None]}


@pytest.fixture(scope="module")
def policy():
    return served_policy()


@pytest.fixture
def session(policy):
    return Session(policy)


def ask(session: Session, *steps: int, **more: object):
    decision = session.answer(decode_message(msgpack_numpy.packb(observation(*steps, **more))))
    return decision.actions, decision.history


def refusal(session: Session, fields: dict[str, object]) -> str:
    with pytest.raises(RequestError) as caught:
        session.answer(decode_message(msgpack_numpy.packb(fields)))
    return str(caught.value)


def assert_answer(answer, expected: np.ndarray, history: str) -> None:
    actions, found = answer
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, expected)
    assert found == history


def test_stacked_observations_are_shown_as_they_are(session, policy):
    assert_answer(ask(session, 4, 5), expected_actions(policy, [4, 5]), "exact")
    assert_answer(ask(session, 12, 13), expected_actions(policy, [12, 13], decision=1), "exact")


def test_an_episode_starts_with_its_first_step_repeated_as_in_training(session, policy):
    assert_answer(ask(session, 0), expected_actions(policy, [0, 0]), "exact")


def test_one_observation_a_chunk_is_answered_and_said_to_be_repeated(session, policy, caplog):
    ask(session, 0)
    with caplog.at_level(logging.WARNING):
        assert_answer(ask(session, 8), expected_actions(policy, [8, 8], decision=1), "repeated")
        ask(session, 16)
    assert len(caplog.records) == 1  # told once a connection
    assert "send 2 observation steps per request" in caplog.text


def test_a_longer_history_begins_with_the_episode():
    policy = served_policy(obs_horizon=3)
    session = Session(policy)
    assert_answer(ask(session, 4), expected_actions(policy, [4, 4, 4]), "exact")
    assert_answer(ask(session, 1, 2, 3), expected_actions(policy, [1, 2, 3], decision=1), "exact")


def test_a_policy_of_one_step_needs_no_history():
    policy = served_policy(obs_horizon=1)
    session = Session(policy)
    ask(session, 0)
    assert_answer(ask(session, 8), expected_actions(policy, [8], decision=1), "exact")


def test_a_reset_begins_an_episode_with_the_next_seed(session, policy):
    ask(session, 0, reset=True)  # the first episode has begun already
    assert_answer(ask(session, 0, 1), expected_actions(policy, [0, 1], decision=1), "exact")
    again = ask(session, 0, reset=True)
    assert_answer(again, expected_actions(policy, [0, 0], seed=FIRST_SEED + 1), "exact")
    seen = expected_actions(policy, [3, 3], seed=FIRST_SEED + 2)
    assert_answer(ask(session, 3, reset=np.bool_(True)), seen, "exact")


def test_frames_of_any_size_go_through_the_one_resize(policy):
    """The first pixel of the resized frame decides the feature; a camera's own would differ."""
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    resized = resize_images(picture[None])[0]
    assert picture[0, 0, 0] != resized[0, 0, 0]
    answers = []
    for front in (picture, resized):
        fields = observation(1) | {"observation/front": front}
        answers.append(Session(policy).answer(decode_message(msgpack_numpy.packb(fields))).actions)
    np.testing.assert_array_equal(*answers)
    assert (answers[0] != expected_actions(policy, [1, 1])).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, ">f4"])
def test_states_of_any_number_are_taken_as_float32(session, policy, dtype):
    fields = observation(10) | {"observation/state": state(10).astype(dtype)}
    decision = session.answer(decode_message(msgpack_numpy.packb(fields)))
    np.testing.assert_array_equal(decision.actions, expected_actions(policy, [10, 10]))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"observation/top": None}, "observation/top: expected uint8 [height, width, 3]"),
        ({"observation/side": frame(1)}, "unknown: observation/side"),
        ({"images": 1}, "expected the keys observation/front, observation/top, observation/state"),
        ({"observation/front": np.zeros((9, 9, 3), np.float32)}, "found float32 [9, 9, 3]"),
        ({"observation/front": np.zeros((3, 9, 9), np.uint8)}, "found uint8 [3, 9, 9]"),
        ({"observation/front": np.zeros((9, 9), np.uint8)}, "found uint8 [9, 9]"),
        ({"observation/front": np.zeros((9, 9, 4), np.uint8)}, "found uint8 [9, 9, 4]"),
        ({"observation/front": np.zeros((2, 9, 9, 3), np.uint8)}, "with a observation/state"),
        ({"observation/state": np.zeros(6)}, "shape [5] or [2, 5], found float64 [6]"),
        ({"observation/state": np.zeros((3, 5))}, "found float64 [3, 5]"),
        ({"observation/state": np.zeros((2, 5))}, "expected uint8 [2, height, width, 3]"),
        ({"observation/state": np.zeros(5, bool)}, "found bool [5]"),
        ({"observation/state": np.full(5, np.nan)}, "expected finite float32 numbers"),
        ({"observation/state": np.full(5, 1e300)}, "expected finite float32 numbers"),
        ({"observation/state": [1.0]}, "of shape [5] or [2, 5], found list [1.0]"),
        ({"observation/state": {"b": 1}}, "found dict {'b': 1}"),
        ({"observation/state": b"bytes"}, "found bytes b'bytes'"),
        ({"observation/state": msgpack.ExtType(5, b"xyz")}, "found ExtType"),
        ({"observation/top": msgpack.Timestamp(1)}, "found Timestamp"),
        ({b"a": 1}, "unknown: b'a'"),
        ({"\x1b[2J\n" + "x" * 999: []}, "unknown: ?[2J?xxx"),
        ({"reset": 1}, "reset: expected true or false, found 1"),
        ({"reset": np.float32(1.5)}, "reset: expected true or false, found 1.5"),
    ],
)
def test_observations_of_another_form_are_refused(session, changes, pattern):
    assert pattern in refusal(session, observation(1) | changes)


def test_a_broken_policy_moves_no_robot():
    policy = served_policy()
    torch.nn.init.constant_(policy.agent.cond_projector.bias, torch.nan)
    assert "actions: expected finite numbers" in refusal(Session(policy), observation(1))


def test_a_missing_key_is_named(session):
    fields = observation(1)
    del fields["observation/top"]
    assert "missing: observation/top; unknown: none" in refusal(session, fields)


def test_the_prompt_of_openpis_examples_changes_nothing(session, policy):
    seen = expected_actions(policy, [0, 0])
    assert_answer(ask(session, 0, prompt="open the drawer"), seen, "exact")


@pytest.mark.parametrize("encoder", [PixelEncoder, PlacedEncoder])
def test_sessions_answered_together_see_and_do_what_they_do_alone(encoder):
    """Four sessions, which differ in steps, episode and history: the same features to the bit."""
    policy = served_policy(encoder=encoder())
    sessions = [Session(policy) for _ in range(4)]
    ask(sessions[2], 5)
    ask(sessions[3], 8)
    shown = [[1, 2], [3, 3], [6, 6], [9, 9]]
    messages = [observation(1, 2), observation(3), observation(6), observation(9, reset=True)]
    turns = [Turn(*pair) for pair in zip(sessions, messages, strict=True)]
    answer_together(policy, turns)
    for turn, steps, (episode, decision) in zip(
        turns, shown, [(0, 0), (0, 0), (0, 1), (1, 0)], strict=True
    ):
        frames = np.stack([np.stack([frame(step)] * 2) for step in steps])
        alone = policy.agent.encode_views(frames)["pooled"]
        assert torch.equal(turn.features["pooled"][0], alone)
        actions = turn.answered.result().actions
        assert_acts(actions, policy, steps, seed=FIRST_SEED + episode, decision=decision)
