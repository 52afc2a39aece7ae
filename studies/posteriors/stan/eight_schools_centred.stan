// y_j ~ N(theta_j, scale_j^2), theta_j ~ N(mu, tau^2): a funnel.
data {
  array[8] real y, scale;
}
parameters {
  real mu;
  real<lower=0> tau;
  vector[8] theta;
}
model {
  mu ~ normal(0, 5);
  tau ~ cauchy(0, 5);
  theta ~ normal(mu, tau);
  y ~ normal(theta, scale);
}
