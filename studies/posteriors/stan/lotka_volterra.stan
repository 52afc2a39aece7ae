// u' = (alpha - beta v) u, v' = (delta u - gamma) v; pelts are log-normal about them.
functions {
  vector change(real t, vector z, real alpha, real beta, real gamma, real delta) {
    return [(alpha - beta * z[2]) * z[1], (delta * z[1] - gamma) * z[2]]';
  }
}
data {
  int n;
  array[n, 2] real<lower=0> pelts;
}
transformed data {
  array[n - 1] real years = linspaced_array(n - 1, 1, n - 1);
}
parameters {
  real<lower=0> alpha, beta, gamma, delta;
  vector<lower=0>[2] start, sigma;
}
model {
  array[n - 1] vector[2] z
    = ode_rk45_tol(change, start, 0, years, 1e-6, 1e-6, 1000, alpha, beta, gamma, delta);
  [alpha, gamma] ~ normal(1, 0.5);
  [beta, delta] ~ normal(0.05, 0.05);
  start ~ lognormal(log(10), 1);
  sigma ~ lognormal(-1, 1);
  pelts[1] ~ lognormal(log(start), sigma);
  for (t in 2 : n) pelts[t] ~ lognormal(log(z[t - 1]), sigma);
}
