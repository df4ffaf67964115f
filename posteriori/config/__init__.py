"""The run file: one YAML that says what to sample, how to explore, how to learn and where to run.

Unknown keys are errors that suggest the nearest key. Units stand in the names. Everything that can
be wrong without loading a model is found here, before anything starts.
"""

from __future__ import annotations

from posteriori.config.problem import (
    ConstraintConfig,
    ContrastConfig,
    GoldConfig,
    PreferenceConfig,
    ProblemConfig,
    Prompts,
    RewardTerm,
    ToolConfig,
)
from posteriori.config.reading import dump, load, parse
from posteriori.config.run import (
    VLLM_LORA_RANKS,
    AutoscaleConfig,
    EmConfig,
    LearnerConfig,
    PlacementConfig,
    ReplayConfig,
    RunConfig,
    SamplingConfig,
    VllmConfig,
)
from posteriori.config.section import Section

__all__ = [
    "VLLM_LORA_RANKS",
    "AutoscaleConfig",
    "ConstraintConfig",
    "ContrastConfig",
    "EmConfig",
    "GoldConfig",
    "LearnerConfig",
    "PlacementConfig",
    "PreferenceConfig",
    "ProblemConfig",
    "Prompts",
    "ReplayConfig",
    "RewardTerm",
    "RunConfig",
    "SamplingConfig",
    "Section",
    "ToolConfig",
    "VllmConfig",
    "dump",
    "load",
    "parse",
]
