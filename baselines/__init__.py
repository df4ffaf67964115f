"""What one would try instead: prompting, SFT, PPO, MCMC, SMC and decoding, on the same problems and budgets."""
