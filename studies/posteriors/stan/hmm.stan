// Two states that are stayed in with probability stay[z], y_t ~ N(mu[z_t], 1); states summed out.
data {
  int n;
  vector[n] y;
}
parameters {
  ordered[2] mu;
  vector<lower=0, upper=1>[2] stay;
}
model {
  matrix[2, n] seen;
  matrix[2, 2] moves = [[stay[1], 1 - stay[1]], [1 - stay[2], stay[2]]];
  for (t in 1 : n) for (k in 1 : 2) seen[k, t] = normal_lpdf(y[t] | mu[k], 1);
  mu ~ normal([3, 6]', 1);
  target += hmm_marginal(seen, moves, [0.5, 0.5]');
}
