// y ~ N(x beta, sigma^2), beta flat.
data {
  int n;
  matrix[n, 4] x;
  vector[n] y;
}
parameters {
  vector[4] beta;
  real<lower=0> sigma;
}
model {
  sigma ~ cauchy(0, 2.5);
  y ~ normal(x * beta, sigma);
}
