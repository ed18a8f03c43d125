"""Training one configuration: the loop, recipes, checkpoints, telemetry. It knows nothing of Ray and Optuna."""
