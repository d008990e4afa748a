"""Studies of the numerics: convergence, stability, cost, Algorithm 1, verification, and the analyses of a trained model."""
