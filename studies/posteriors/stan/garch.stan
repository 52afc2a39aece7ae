// y_t ~ N(mu, v_t), v_{t+1} = alpha0 + alpha1 (y_t - mu)^2 + beta1 v_t; beta1's prior is uniform
// below 1 - alpha1, whose density counts.
data {
  int n;
  real<lower=0> start;
  vector[n] y;
}
parameters {
  real mu;
  real<lower=0> alpha0;
  real<lower=0, upper=1> alpha1;
  real<lower=0, upper=1 - alpha1> beta1;
}
model {
  vector[n] v;
  v[1] = start;
  for (t in 2 : n) v[t] = alpha0 + alpha1 * square(y[t - 1] - mu) + beta1 * v[t - 1];
  target += -log1m(alpha1);
  y ~ normal(mu, sqrt(v));
}
