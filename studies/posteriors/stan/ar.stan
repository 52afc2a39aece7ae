// y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma^2); `first` has the values before, the latest in front.
data {
  int n, order;
  vector[order] first;
  vector[n] y;
}
transformed data {
  vector[order + n] whole = append_row(reverse(first), y);
  matrix[n, order] lags;
  for (k in 1 : order) lags[ : , k] = segment(whole, order + 1 - k, n);
}
parameters {
  real alpha;
  vector[order] beta;
  real<lower=0> sigma;
}
model {
  alpha ~ normal(0, 10);
  beta ~ normal(0, 10);
  sigma ~ cauchy(0, 2.5);
  y ~ normal(alpha + lags * beta, sigma);
}
