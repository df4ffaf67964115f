"""The LoRA policy against plain Hugging Face forwards, PEFT and vLLM's own adapter reader."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from posteriori.config import LearnerConfig
from posteriori.errors import CorruptPayload, UserError
from posteriori.groups import check, prepare
from posteriori.policy import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Policy, portable_name, target_modules
from tests.learner.helpers import random_strings, tiny_problem, trajectory


def shaken_policy(lm, rank=8, seed=0):
    """A policy whose adapter does something: PEFT starts with B = 0."""
    policy = Policy(lm, LearnerConfig(lora_rank=rank), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def naive(model, prompt_ids, moves, item):
    """One trajectory, one plain forward over the whole sequence, masked log-softmax by hand."""
    ids = torch.tensor([[*prompt_ids, *item.tokens.tolist()]])
    logits = model(input_ids=ids).logits[0].float()
    log_q, log_q_stop, length, state = [], [], 0, 0
    for i in range(len(item) + 1):
        here = logits[len(prompt_ids) - 1 + i][torch.from_numpy(moves.column_tokens)]
        legal = torch.from_numpy(moves.row(length, state))
        log_moves = torch.log_softmax(here.masked_fill(~legal, -torch.inf), dim=0)
        if i == len(item):
            log_q_stop.append(log_moves[-1])
        elif item.action[i]:
            log_q_stop.append(log_moves[-1])
            log_q.append(log_moves[moves.columns[int(item.tokens[i])]])
            state, length = moves.step(state, int(item.tokens[i])), length + 1
        else:
            log_q_stop.append(torch.tensor(0.0))
            log_q.append(torch.tensor(0.0))
    return torch.tensor(()) if not log_q else torch.stack(log_q), torch.stack(log_q_stop)


def with_tool_output(problem, prompt, before, output, after):
    """z = before · output · after where the output is no action."""
    tokens = [*before, *output, *after]
    action = np.ones(len(tokens), dtype=np.bool_)
    action[len(before) : len(before) + len(output)] = False
    moves = problem.moves(prompt)
    rows = moves.masks([*before, *after])[np.concatenate([[0], np.cumsum(action)])]
    stop_legal = rows[:, -1] & np.append(action, True)
    plain = trajectory(problem, prompt, before)
    return replace(
        plain,
        tokens=np.asarray(tokens, dtype=np.int32),
        action=action,
        log_q=np.zeros(len(tokens), dtype=np.float32),
        log_q_stop=np.zeros(len(tokens) + 1, dtype=np.float32),
        log_reward=np.zeros(len(tokens) + 1, dtype=np.float32),
        stop_legal=stop_legal,
    )


def test_log_probs_equal_a_plain_forward_of_each_trajectory(tiny_lm):
    problem = tiny_problem(tiny_lm)
    other = tiny_problem(
        tiny_lm, name="other", min_tokens=0, max_tokens=3, words=(" bird", " fish")
    )
    policy = shaken_policy(tiny_lm)
    groups = []
    for source, seed in ((problem, 0), (other, 1)):
        for prompt in source.prompts:
            items = [
                trajectory(source, prompt, z) for z in random_strings(source.moves(prompt), 6, seed)
            ]
            groups.append(prepare(items, source))
    output = [tiny_lm.one_token(c, "tool output") for c in "abc"]
    word = [int(t) for t in problem.moves(problem.prompts[0]).alphabet]
    tool = with_tool_output(problem, problem.prompts[0], word[:2], output, word[2:4])
    check(tool, {"tiny": problem})
    groups.append(prepare([tool, trajectory(problem, problem.prompts[0], word[:2])], problem))

    log_q, log_q_stop = policy.log_probs(groups)
    row = 0
    for group in groups:
        source = problem if group.problem == "tiny" else other
        prompt = source.by_id[group.prompt]
        for item in group.trajectories:
            n = len(item)
            tokens, stops = naive(
                policy.model, source.policy_ids(prompt), source.moves(prompt), item
            )
            torch.testing.assert_close(log_q[row, :n], tokens, rtol=0, atol=1e-5)
            torch.testing.assert_close(log_q_stop[row, : n + 1], stops, rtol=0, atol=1e-5)
            assert not log_q[row, n:].any()
            assert not log_q_stop[row, n + 1 :].any()
            row += 1
    assert row == len(log_q)
    # Forced at the cap: by normalisation, exactly.
    longest = groups[0].lengths.argmax()
    assert log_q_stop[longest, 5] == 0.0


def test_gradients_equal_those_of_plain_forwards(tiny_lm):
    problem = tiny_problem(tiny_lm)
    policy = shaken_policy(tiny_lm)
    prompt = problem.prompts[0]
    items = [trajectory(problem, prompt, z) for z in random_strings(problem.moves(prompt), 5, 3)]
    log_q, log_q_stop = policy.log_probs([prepare(items, problem)])
    ends = torch.tensor([len(item) for item in items])
    total = (log_q.sum(1) + log_q_stop.gather(1, ends[:, None]).squeeze(1)).square().sum()
    packed = torch.autograd.grad(total, policy.parameters())
    plain = torch.zeros(())
    for item in items:
        tokens, stops = naive(policy.model, problem.policy_ids(prompt), problem.moves(prompt), item)
        plain = plain + (tokens.sum() + stops[-1]).square()
    for ours, theirs in zip(packed, torch.autograd.grad(plain, policy.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_base_model_is_left_alone(tiny_lm):
    ids = torch.tensor([[1, 5, 7, 9]])
    with torch.no_grad():
        before = tiny_lm.model(input_ids=ids).logits
        policy = shaken_policy(tiny_lm)
        assert torch.equal(tiny_lm.model(input_ids=ids).logits, before)
        assert not torch.allclose(policy.model(input_ids=ids).logits, before, atol=1e-2)
    # One copy of the weights, none of them trainable.
    ours = {p.data_ptr() for p in policy.model.parameters()}
    assert {p.data_ptr() for p in tiny_lm.model.parameters()} <= ours
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())
    assert all("lora" in n for n, p in policy.model.named_parameters() if p.requires_grad)


def test_a_new_policy_is_the_base_model_and_its_seed_decides_the_rest(tiny_lm):
    ids = torch.tensor([[1, 5, 7, 9]])
    first, again, other = (Policy(tiny_lm, LearnerConfig(lora_rank=8), s) for s in (0, 0, 1))
    with torch.no_grad():
        plain = tiny_lm.model(input_ids=ids).logits
        torch.testing.assert_close(first.model(input_ids=ids).logits, plain)
    assert first.adapter_files() == again.adapter_files()
    assert first.adapter_files() != other.adapter_files()


def test_peft_loads_the_files_unchanged(tiny_lm, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = shaken_policy(tiny_lm)
    files = policy.adapter_files()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(tiny_lm.name)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    ids = torch.tensor([[1, 5, 7, 9]])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(input_ids=ids).logits, policy.model(input_ids=ids).logits, rtol=0, atol=1e-6
        )
    # Byte for byte what save_pretrained writes, but for the directory of this machine.
    policy.model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    theirs = json.loads((tmp_path / "peft" / ADAPTER_CONFIG).read_text())
    ours = json.loads(files[ADAPTER_CONFIG])
    assert ours.pop("base_model_name_or_path") == portable_name(tiny_lm.name)
    theirs.pop("base_model_name_or_path")
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert ours == theirs
    assert files[ADAPTER_WEIGHTS] == (tmp_path / "peft" / ADAPTER_WEIGHTS).read_bytes()


@pytest.mark.vllm
def test_vllm_reads_the_adapter_config(tiny_lm, tmp_path):
    helper = pytest.importorskip("vllm.lora.peft_helper")
    (tmp_path / ADAPTER_CONFIG).write_bytes(shaken_policy(tiny_lm).adapter_files()[ADAPTER_CONFIG])
    read = helper.PEFTHelper.from_local_dir(str(tmp_path), max_position_embeddings=128)
    assert (read.r, read.lora_alpha) == (8, 16)

    class Limits:
        max_lora_rank = 8
        target_modules = None

    read.validate_legal(Limits())
    Limits.max_lora_rank = 4
    with pytest.raises(ValueError, match="rank"):
        read.validate_legal(Limits())


def test_no_directory_of_this_machine_is_published(tiny_lm):
    config = json.loads(Policy(tiny_lm, LearnerConfig(lora_rank=8)).adapter_files()[ADAPTER_CONFIG])
    assert "/" not in config["base_model_name_or_path"]
    assert config["inference_mode"] is True
    assert portable_name("openai-community/gpt2") == "openai-community/gpt2"


def test_adapter_round_trip_is_exact_and_refuses_other_shapes(tiny_lm):
    policy = shaken_policy(tiny_lm, seed=1)
    files = policy.adapter_files()
    fresh = Policy(tiny_lm, LearnerConfig(lora_rank=8))
    assert fresh.adapter_files() != files
    fresh.load_adapter(files)
    assert fresh.adapter_files() == files
    with pytest.raises(UserError, match="another rank"):
        Policy(tiny_lm, LearnerConfig(lora_rank=16)).load_adapter(files)
    with pytest.raises(CorruptPayload):
        fresh.load_adapter({ADAPTER_WEIGHTS: files[ADAPTER_WEIGHTS][:100]})


def test_targets_are_projections_of_the_model(tiny_lm):
    llama = ["down_proj", "gate_up_proj", "k_proj"]
    everything = target_modules(tiny_lm.model, "all-linear")
    assert everything == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert target_modules(tiny_lm.model, ("v_proj", "k_proj")) == ["k_proj", "v_proj"]
    for wrong in ("lm_head", "embed_tokens", "norm", llama[1]):
        with pytest.raises(UserError, match=rf"{wrong}.*Choose among.*q_proj"):
            target_modules(tiny_lm.model, ("k_proj", wrong))
    with pytest.raises(UserError, match="empty"):
        target_modules(tiny_lm.model, ())


def test_gpt2_keeps_its_projections_transposed(tiny_lm):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tiny_lm.tokenizer), n_embd=32, n_layer=1, n_head=1, n_positions=64
        )
    ).requires_grad_(False)
    lm = replace(tiny_lm, model=model.eval(), name="gpt2-like")
    problem = tiny_problem(lm)
    policy = shaken_policy(lm)
    prompt = problem.prompts[1]
    items = [trajectory(problem, prompt, z) for z in random_strings(problem.moves(prompt), 4, 0)]
    log_q, log_q_stop = policy.log_probs([prepare(items, problem)])
    for row, item in enumerate(items):
        tokens, stops = naive(policy.model, problem.policy_ids(prompt), problem.moves(prompt), item)
        torch.testing.assert_close(log_q[row, : len(item)], tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_q_stop[row, : len(item) + 1], stops, rtol=0, atol=1e-5)
    assert json.loads(policy.adapter_files()[ADAPTER_CONFIG])["fan_in_fan_out"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": "nowhere"}, "unknown problem"),
        ({"prompt": "99"}, "unknown prompt"),
        ({"tokens": np.asarray([1, 2], dtype=np.int32)}, "not in the alphabet"),
        ({"stop_legal": np.asarray([True, True, True])}, "recorded as legal"),
        ({"log_q": np.zeros(5, dtype=np.float32)}, "shape"),
        ({"log_reward": np.full(3, np.nan, dtype=np.float32)}, "not finite"),
    ],
)
def test_poisoned_trajectories_are_refused_with_their_producer(tiny_lm, change, message):
    problem = tiny_problem(tiny_lm)
    prompt = problem.prompts[0]
    good = trajectory(problem, prompt, problem.moves(prompt).alphabet[:2].tolist())
    check(good, {"tiny": problem})
    with pytest.raises(CorruptPayload, match=message) as refusal:
        check(replace(good, **change), {"tiny": problem})
    assert "actor-7" in str(refusal.value)


def test_too_long_a_trajectory_is_refused(tiny_lm):
    problem = tiny_problem(tiny_lm, max_tokens=3)
    longer = tiny_problem(tiny_lm, max_tokens=4)
    prompt = problem.prompts[0]
    item = trajectory(longer, prompt, longer.moves(prompt).alphabet[:4].tolist())
    with pytest.raises(CorruptPayload, match="not a legal move"):
        check(item, {"tiny": problem})
