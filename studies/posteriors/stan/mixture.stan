// y ~ theta N(mu_0, sigma_0^2) + (1 - theta) N(mu_1, sigma_1^2), mu_0 < mu_1.
data {
  int n;
  vector[n] y;
}
parameters {
  ordered[2] mu;
  vector<lower=0>[2] sigma;
  real<lower=0, upper=1> theta;
}
model {
  mu ~ normal(0, 2);
  sigma ~ normal(0, 2);
  theta ~ beta(5, 5);
  for (t in 1 : n)
    target += log_mix(theta, normal_lpdf(y[t] | mu[1], sigma[1]),
                      normal_lpdf(y[t] | mu[2], sigma[2]));
}
