"""Named configurations: ``base`` is the documents', ``original`` has their larger total, the others are smaller."""

from typing import Final

from statevla.config.schema import Config, ModelConfig, Phase1Config, TrainingConfig

PRESETS: Final[dict[str, Config]] = {
    "base": Config(),
    "original": Config(model=ModelConfig(policy_mlp=256)),
    "small": Config(
        model=ModelConfig(image_size=128, embed_dim=192, encoder_depth=6, policy_d_state=32, gripper_width=192),
        training=TrainingConfig(phase1=Phase1Config(temporal_predictor_hidden_dim=384)),
    ),
    "tiny": Config(
        model=ModelConfig(
            image_size=32,
            patch_size=8,
            embed_dim=64,
            encoder_depth=2,
            policy_layers=2,
            policy_d_state=16,
            gripper_width=64,
        ),
        training=TrainingConfig(phase1=Phase1Config(temporal_predictor_hidden_dim=256)),
    ),
}
